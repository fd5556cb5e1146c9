//! HTTP: the only module that knows axum and hyper. Handlers take apart, hand over, put together;
//! they own no commit, because they are dropped when a client goes away.

pub mod admin;
pub mod agent;
pub mod auth;
pub mod body;
pub mod feed;
pub mod front;
pub mod health;
pub mod leftover;
pub mod line;
pub mod message_query;
pub mod message_send;
pub mod openapi;
pub mod patience;
pub mod problem;
pub mod router;
pub mod server;
pub mod session;
pub mod state;
pub mod unparsed;
pub mod wire;
