//! What the agents of one registry ask each other, so that it does not matter which of them a client has reached: whoever keeps a
//! registration, or holds a claim, answers.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use async_trait::async_trait;
use pointsman_registry::{Answer, Peers, Registry, Unanswered};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::api::register::{self, Told, Wanted};
use crate::claims::Claims;
use crate::problem::Problem;

/// What another agent is asked to do for a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Question {
    /// Renew a registration, and let it be as wanted, if anything is.
    Put {
        service: String,
        code: String,
        holder: Option<String>,
        wanted: Option<Wanted>,
    },
    /// Tell the role.
    Role {
        service: String,
        code: String,
    },
    Delete {
        service: String,
        code: String,
        holder: Option<String>,
    },
    Resign {
        service: String,
        code: String,
        holder: Option<String>,
    },
    /// Give a claim back; whether the call has succeeded, if that is known.
    Release {
        claim: String,
        success: Option<bool>,
    },
}

/// What the agent that has it answers.
type Reply<T> = Result<T, Problem>;

/// The other agents of the registry.
#[derive(Debug)]
pub(crate) struct OtherAgents {
    peers: RwLock<Option<Peers>>,
    asked: Arc<Asked>,
}

/// This agent, as the others ask it.
#[derive(Default)]
struct Asked {
    state: OnceLock<Weak<State>>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl OtherAgents {
    /// Lets this agent take part; it answers once it is [ready](OtherAgents::answer_for).
    pub(crate) fn join(registry: &Registry) -> Result<Self, pointsman_registry::Error> {
        let asked = Arc::<Asked>::default();
        let peers = registry.join_peers(asked.clone())?;
        Ok(Self { peers: RwLock::new(Some(peers)), asked })
    }

    /// Answers from now on by what this agent has.
    pub(crate) fn answer_for(&self, state: &Arc<State>) {
        // There is one state for each agent.
        let _ = self.asked.state.set(Arc::downgrade(state));
    }

    /// What ids that this agent gives begin with.
    pub(crate) fn own_id(&self) -> String {
        self.peers().map(|peers| peers.id().to_owned()).unwrap_or_default()
    }

    /// Takes part no more: the others take over what they are asked for.
    pub(crate) fn leave(&self) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn peers(&self) -> Option<Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks all others; `None`: none of them has it.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<Option<Reply<T>>, Unanswered> {
        let Some(peers) = self.peers() else { return Ok(None) };
        peers.ask(text(question)).await.map(|answer| answer.as_deref().and_then(read))
    }

    /// Asks one of them.
    pub(crate) async fn ask_one<T: DeserializeOwned>(
        &self,
        agent: &str,
        question: &Question,
    ) -> Result<Option<Reply<T>>, Unanswered> {
        let Some(peers) = self.peers() else { return Ok(None) };
        peers.ask_one(agent, text(question)).await.map(|answer| answer.as_deref().and_then(read))
    }
}

fn text(value: &impl Serialize) -> String {
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    serde_json::to_string(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(answer: &str) -> Option<Reply<T>> {
    let read = serde_json::from_str(answer);
    read.inspect_err(|error| tracing::warn!(%error, "another agent answers what cannot be read")).ok()
}

#[async_trait]
impl Answer for Asked {
    async fn answer(&self, question: &str) -> Option<String> {
        let state = self.state.get()?.upgrade()?;
        // Of an agent that knows more than this one, perhaps: then another one has to answer.
        let question: Question = serde_json::from_str(question).ok()?;
        match question {
            Question::Put { service, code, holder, wanted } => {
                let reply = register::put_kept(&state, &service, &code, holder.as_deref(), wanted).await?;
                Some(text(&reply))
            }
            Question::Role { service, code } => {
                let registered = state.registrations.kept(&service, &code)?;
                Some(text(&Reply::Ok(Told::from(registered.answer()))))
            }
            Question::Delete { service, code, holder } => {
                Some(text(&register::delete_kept(&state, &service, &code, holder.as_deref()).await?))
            }
            Question::Resign { service, code, holder } => {
                Some(text(&register::resign_kept(&state, &service, &code, holder.as_deref()).await?))
            }
            Question::Release { claim, success } => state
                .claims
                .has_given(&claim)
                .then(|| text(&state.claims.release(&claim, success.map(Claims::outcome)))),
        }
    }
}
