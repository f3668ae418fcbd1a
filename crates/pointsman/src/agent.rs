//! The agent: what this library does, for any language and any shell, over HTTP; and the dashboard.
//!
//! `docs/agent.md` says what can be asked. `pointsman serve` and `pointsman dev` run agents; a program of its own can hold one too:
//!
//! ```
//! use pointsman::Registry;
//! use pointsman::agent::{Agent, Settings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::connect("memory://example").await?;
//! // With port 0 the system chooses.
//! let agent = Agent::start(&registry, Settings::new("127.0.0.1:0".parse()?)).await?;
//! println!("dashboard at http://{}/", agent.address());
//! agent.close().await;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

pub use pointsman_agent::{Agent, Error, InvalidToken, Limits, Settings, Tls, TlsError, TlsFile, Token};
