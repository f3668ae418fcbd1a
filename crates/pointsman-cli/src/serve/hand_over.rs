//! The next process takes over the listeners of this one: nobody who connects meanwhile is lost.
//!
//! The one that serves listens on a Unix socket. The next one connects to it, is given the listeners, serves on them too, and says so; then
//! the first one leaves as it does on SIGTERM, and closes the connection once it is no longer registered.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::config::check_socket;

/// What is said with the listeners.
const GREETING: &[u8] = b"pointsman listeners 1\n";
/// What the next one says once it serves.
const READY: u8 = b'r';
/// The most listeners: the kernel passes no more at once (`SCM_MAX_FD`).
const MOST: usize = 253;
/// How long the two may take over their words; not the next one's start, which may wait for the registry.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the next process finds this one.
#[derive(Debug)]
pub(super) struct HandOver {
    listener: UnixListener,
    path: PathBuf,
    /// What is at the path, as long as it is this one's.
    place: (u64, u64),
    /// Who has asked, and whether it has the listeners.
    next: Option<(UnixStream, bool)>,
    /// Whether it serves.
    is_taken: bool,
}

/// The process before this one.
#[derive(Debug)]
pub(super) struct Predecessor {
    stream: OwnedWriteHalf,
    left: watch::Receiver<bool>,
}

impl HandOver {
    /// Waits at `path` from now on, for whoever has the rights of this process's user.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        check_socket(path)?;
        // Somebody else's socket there is a dead one, or that of the process that has handed over.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let place = place(path)?;
        Ok(Self { listener, path: path.to_owned(), place, next: None, is_taken: false })
    }

    /// Returns once the next process serves. Whoever asks and does not serve after all changes nothing. Cancellation loses nothing: who
    /// has asked is kept.
    pub(super) async fn taken(&mut self, listeners: impl Fn() -> io::Result<Vec<TcpListener>>) {
        loop {
            let Some((stream, is_given)) = &mut self.next else {
                match self.listener.accept().await {
                    Ok((stream, _)) => self.next = Some((stream, false)),
                    Err(error) => {
                        tracing::warn!(%error, "hand over: accept");
                        tokio::time::sleep(PATIENCE).await;
                    }
                }
                continue;
            };
            if !*is_given {
                if let Err(error) = give(stream, &listeners).await {
                    tracing::warn!(%error, "hand over: the listeners could not be given");
                    self.next = None;
                    continue;
                }
                *is_given = true;
                tracing::info!("the next process has the listeners");
            }
            let mut word = [0];
            if matches!(stream.read(&mut word).await, Ok(1)) && word == [READY] {
                self.is_taken = true;
                return;
            }
            tracing::warn!("the next process has gone again without serving: this one goes on");
            self.next = None;
        }
    }

    /// Tells the next process, if there is one, that this one is no longer registered.
    pub(super) fn left(&mut self) {
        if self.is_taken {
            self.next = None;
        }
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        // What is there by now may be the next one's, even if that has not come to say so.
        if place(&self.path).is_ok_and(|place| place == self.place) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Which file is at `path`.
fn place(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|data| (data.dev(), data.ino()))
}

/// Whether the other end is a process of the same user.
fn check_user(stream: &UnixStream) -> io::Result<()> {
    if socket_peercred(stream)?.uid == rustix::process::geteuid() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the process at the other end is another user's"))
    }
}

async fn give(stream: &UnixStream, listeners: &impl Fn() -> io::Result<Vec<TcpListener>>) -> io::Result<()> {
    check_user(stream)?;
    let listeners = listeners()?;
    if listeners.len() > MOST {
        return Err(io::Error::other(format!("more than {MOST} listeners cannot be given")));
    }
    let fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&fds).size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    stream.writable().await?;
    let sent = stream.try_io(Interest::WRITABLE, || {
        Ok(sendmsg(stream, &[IoSlice::new(GREETING)], &mut ancillary, SendFlags::NOSIGNAL)?)
    })?;
    if sent == GREETING.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Asks the process before this one for its listeners, if there is one at `path`.
pub(super) async fn take(path: &Path) -> io::Result<Option<(Predecessor, Vec<TcpListener>)>> {
    check_socket(path)?;
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        // Nobody is there, or nobody is there any more.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    check_user(&stream)?;
    let listeners = tokio::time::timeout(PATIENCE, receive(&stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let (mut end, stream) = stream.into_split();
    let (sender, left) = watch::channel(false);
    tokio::spawn(async move {
        let _ = end.read_u8().await;
        sender.send_replace(true);
    });
    Ok(Some((Predecessor { stream, left }, listeners)))
}

async fn receive(stream: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let received = loop {
        stream.readable().await?;
        let mut into = [IoSliceMut::new(&mut greeting)];
        match stream
            .try_io(Interest::READABLE, || Ok(recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?))
        {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => break received?.bytes,
        }
    };
    if greeting[..received] != *GREETING {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "whoever is there is no pointsman of this version"));
    }
    let mut listeners = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            listeners.extend(fds.map(|fd: OwnedFd| TcpListener::from(fd)));
        }
    }
    if listeners.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there was no listener in it"));
    }
    Ok(listeners)
}

impl Predecessor {
    /// Lets it leave: this process serves.
    pub(super) async fn dismiss(&mut self) {
        if let Err(error) = self.stream.write_u8(READY).await {
            tracing::warn!(%error, "the process before this one has gone already");
        }
    }

    /// Returns once it is no longer registered, or gone.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut left = self.left.clone();
        async move {
            // Who cannot tell any more has left.
            let _ = left.wait_for(|left| *left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listeners_go_from_one_process_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.sock");
        assert!(take(&path).await.unwrap().is_none());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut first = HandOver::listen(&path).unwrap();
        let next = async {
            // Somebody who asks and goes away again.
            drop(take(&path).await.unwrap().unwrap());
            let (mut predecessor, listeners) = take(&path).await.unwrap().unwrap();
            let second = HandOver::listen(&path).unwrap();
            predecessor.dismiss().await;
            (predecessor, listeners, second)
        };
        let (_, (predecessor, listeners, second)) =
            tokio::join!(first.taken(|| Ok(vec![listener.try_clone()?, listener.try_clone()?])), next);
        assert_eq!(listeners.iter().map(|one| one.local_addr().unwrap()).collect::<Vec<_>>(), [address; 2]);
        drop(first);
        predecessor.left().await;
        assert!(path.exists(), "the next one's");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_hand_over_goes_on_after_something_else_has_come_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.sock");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = || Ok(vec![listener.try_clone()?]);
        let mut first = HandOver::listen(&path).unwrap();
        let (mut predecessor, _) = tokio::select! {
            () = first.taken(listeners) => panic!("nobody has said so"),
            next = take(&path) => next.unwrap().unwrap(),
        };
        predecessor.dismiss().await;
        tokio::time::timeout(PATIENCE, first.taken(listeners)).await.unwrap();
        assert!(!*predecessor.left.borrow());
        first.left();
        tokio::time::timeout(PATIENCE, predecessor.left()).await.unwrap();
    }

    /// One that is ended just when the next one has made its own.
    #[tokio::test]
    async fn the_socket_of_the_next_process_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.sock");
        let first = HandOver::listen(&path).unwrap();
        let second = HandOver::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_is_no_pointsman_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 mail.example ESMTP").await.unwrap();
            stream
        };
        let (taken, _stream) = tokio::join!(take(&path), other);
        assert!(taken.unwrap_err().to_string().contains("no pointsman"));
    }
}
