//! Pages that go across the modules. There is no code here.

#[doc = include_str!("request_flow.md")]
pub mod request_flow {}

#[doc = include_str!("testing.md")]
pub mod testing {}
