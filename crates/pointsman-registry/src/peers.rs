//! How processes that share a registry ask each other something, through the registry: so they need no way to each other, and no address,
//! certificate or token for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long a question may take. Whoever lives answers within milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// The largest question or answer, in bytes.
pub(crate) const MAX_BYTES: usize = 128 * 1024;

/// Answers what peers ask.
#[async_trait]
pub trait Answer: Send + Sync + 'static {
    /// The answer; `None`: this is a question for another. Dropped where it takes longer than whoever asks waits.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Answer;
    /// struct Version;
    ///
    /// #[async_trait::async_trait]
    /// impl Answer for Version {
    ///     async fn answer(&self, question: &str) -> Option<String> {
    ///         (question == "version").then(|| "1.0".to_owned())
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// assert_eq!(Version.answer("version").await.as_deref(), Some("1.0"));
    /// assert_eq!(Version.answer("uptime").await, None); // a question for another peer
    /// # }
    /// ```
    async fn answer(&self, question: &str) -> Option<String>;
}

/// A process among those that answer each other's questions through one registry. When the last clone is dropped, it is one of them no more.
///
/// Nothing is asked twice, and what has not been answered in time is withdrawn. A peer that was about to answer just then may have done
/// what it was asked for.
///
/// # Examples
///
/// ```
/// # use std::sync::Arc;
/// # use std::time::Duration;
/// # use pointsman_registry::{Answer, Registry};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # struct Echo;
/// # #[async_trait::async_trait]
/// # impl Answer for Echo {
/// #     async fn answer(&self, question: &str) -> Option<String> {
/// #         Some(question.to_uppercase())
/// #     }
/// # }
///
/// let registry = Registry::connect("memory://peers").await?;
/// let peers = registry.join_peers(Arc::new(Echo))?; // `Echo` implements `Answer`
/// assert_eq!(peers.id().len(), 16);
/// # tokio::time::sleep(Duration::from_millis(50)).await;
/// assert_eq!(peers.ask("hello".to_owned()).await?, None); // there are no others
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Peers {
    id: Arc<str>,
    questions: mpsc::UnboundedSender<Question>,
}

/// It is not known whether a peer has an answer: one of them has not answered within a second, or they could not be asked, because the
/// registry is away or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not all who share the registry have answered")]
pub struct Unanswered;

/// A question under way. Its reply is dropped where it is not known whether anybody has an answer.
#[derive(Debug)]
pub(crate) struct Question {
    /// Whom it is for; `None`: for all others.
    pub(crate) to: Option<Arc<str>>,
    pub(crate) text: String,
    pub(crate) until: Instant,
    pub(crate) reply: oneshot::Sender<Option<String>>,
}

/// What a backend needs to let a process take part.
pub(crate) struct Part {
    pub(crate) id: Arc<str>,
    pub(crate) answer: Arc<dyn Answer>,
    /// Ends when the process is to take part no more.
    pub(crate) questions: mpsc::UnboundedReceiver<Question>,
}

/// A process that is to take part, and what its backend needs for that.
pub(crate) fn pair(answer: Arc<dyn Answer>) -> (Peers, Part) {
    let (sender, questions) = mpsc::unbounded_channel();
    let id: Arc<str> = format!("{:016x}", fastrand::u64(..)).into();
    (Peers { id: id.clone(), questions: sender }, Part { id, answer, questions })
}

impl Peers {
    /// The name of this process among them: 16 hexadecimal digits, other ones with each start.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks all others, and returns the first answer; `None` if all have said that they have none, or there are no others.
    ///
    /// # Errors
    ///
    /// [`Unanswered`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use pointsman_registry::{Answer, Registry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # struct Echo;
    /// # #[async_trait::async_trait]
    /// # impl Answer for Echo {
    /// #     async fn answer(&self, question: &str) -> Option<String> {
    /// #         Some(question.to_uppercase())
    /// #     }
    /// # }
    ///
    /// # let registry = Registry::connect("memory://ask").await?;
    /// let (one, two) = (registry.join_peers(Arc::new(Echo))?, registry.join_peers(Arc::new(Echo))?);
    /// # tokio::time::sleep(Duration::from_millis(50)).await;
    /// assert_eq!(one.ask("hello".to_owned()).await?.as_deref(), Some("HELLO"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ask(&self, question: String) -> Result<Option<String>, Unanswered> {
        self.ask_for(None, question).await
    }

    /// As [`Peers::ask`], of one of them; `None` also if it takes part no more.
    ///
    /// # Errors
    ///
    /// [`Unanswered`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use pointsman_registry::{Answer, Registry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # struct Echo;
    /// # #[async_trait::async_trait]
    /// # impl Answer for Echo {
    /// #     async fn answer(&self, question: &str) -> Option<String> {
    /// #         Some(question.to_uppercase())
    /// #     }
    /// # }
    ///
    /// # let registry = Registry::connect("memory://ask-one").await?;
    /// let (one, two) = (registry.join_peers(Arc::new(Echo))?, registry.join_peers(Arc::new(Echo))?);
    /// # tokio::time::sleep(Duration::from_millis(50)).await;
    /// assert_eq!(one.ask_one(two.id(), "hello".to_owned()).await?.as_deref(), Some("HELLO"));
    /// assert_eq!(one.ask_one("0000000000000000", "hello".to_owned()).await?, None); // no such peer
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ask_one(&self, peer: &str, question: String) -> Result<Option<String>, Unanswered> {
        self.ask_for(Some(peer.into()), question).await
    }

    async fn ask_for(&self, to: Option<Arc<str>>, text: String) -> Result<Option<String>, Unanswered> {
        if text.len() > MAX_BYTES {
            return Err(Unanswered);
        }
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + PATIENCE;
        self.questions.send(Question { to, text, until, reply }).map_err(|_| Unanswered)?;
        let answered = tokio::time::timeout_at(until, answer).await.map_err(|_| Unanswered)?;
        answered.map_err(|_| Unanswered)
    }
}
