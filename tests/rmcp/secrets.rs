//! No token, and nothing made of one, in anything that is printed.

use std::sync::{Arc, Mutex};

use axum::http::request::Parts;
use mcp_perf::{
    cache::Key,
    limit::{Limiter, Quota},
    rmcp::{Performance, Principal, ToolPolicy},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::fixture::{Client, GENERATIONS, Http, MINUTE, Mode, SECOND, Scripted, said};

const TOKEN: &str = "hunter2-bf8c0f7e-very-secret";

/// Whatever of the token must not be seen.
fn forbidden() -> Vec<String> {
    let mut forbidden = vec![TOKEN.to_owned()];
    for secret in [TOKEN.to_owned(), format!("Bearer {TOKEN}")] {
        for digest in [Sha256::digest(secret.as_bytes()).to_vec(), secret.into_bytes()] {
            let hex = |byte: &u8| format!("{byte:02x}");
            let lower: String = digest.iter().map(hex).collect();
            forbidden.extend([lower.to_uppercase(), lower, base64(&digest), format!("{digest:?}")]);
            // The beginning of any of them is too much, too.
            forbidden.push(digest[..8].iter().map(hex).collect());
            forbidden.push(base64(&digest[..9]));
            for list in [
                format!("{:?}", &digest[..8]),
                format!("{:02x?}", &digest[..8]),
                format!("{:x?}", &digest[..8]),
            ] {
                forbidden
                    .extend([list.to_uppercase(), list].map(|list| list.trim_matches(['[', ']']).to_owned()));
            }
        }
    }
    forbidden
}

/// Without padding, so that it is found with and without.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = bytes.chunks(3).flat_map(|chunk| {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(move |index| char::from(LETTERS[(word >> (18 - 6 * index)) as usize & 63]))
    });
    sextets.collect()
}

fn hides(what: &str, printed: &str) {
    assert!(!printed.is_empty());
    for secret in forbidden() {
        assert!(!printed.contains(&secret), "{what} shows {secret}: {printed}");
    }
}

#[test]
fn what_is_looked_for_would_be_found() {
    assert_eq!(base64(b"Man"), "TWFu");
    assert_eq!(base64(b"Ma"), "TWE");
    let digest = Sha256::digest(format!("Bearer {TOKEN}").as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = digest.as_slice();
    let lists =
        [format!("{bytes:?}"), format!("{bytes:02x?}"), format!("{bytes:02X?}"), format!("{bytes:x?}")];
    for leak in lists.into_iter().chain([format!("Principal({hex})"), base64(&digest) + "="]) {
        assert!(forbidden().iter().any(|secret| leak.contains(secret)), "{leak}");
    }
}

#[tokio::test]
async fn nothing_that_is_printed_shows_the_token_or_a_digest_of_it() {
    let printed = Arc::new(Mutex::new(Vec::<(&str, String)>::new()));
    let limiter = Limiter::builder().policy("caller", Quota::per_hour(2)).build().unwrap();
    let caller = limiter.scope("caller").unwrap();
    let server = Scripted::new().tool("inbox", async |_| said("mail"));
    let (identified, limited) = (Arc::clone(&printed), Arc::clone(&printed));
    let policy = ToolPolicy::private(MINUTE).tag("mail");
    hides("a policy", &format!("{policy:?}"));
    let builder = Performance::builder(server)
        .cache_tool("inbox", policy)
        .identity(move |context| {
            let principal = Principal::of_authorization(context);
            identified.lock().unwrap().push(("a principal", format!("{principal:?} {principal:#?}")));
            principal
        })
        .limit(limiter.clone(), move |call| {
            let who = Principal::of_authorization(call.context);
            let subject = caller.on(&who);
            let mut limited = limited.lock().unwrap();
            limited.push(("a call", format!("{call:?} {call:#?}")));
            limited.push(("a subject", format!("{subject:?}")));
            vec![subject]
        });
    hides("a builder", &format!("{builder:?} {builder:#?}"));
    let wrapped = builder.build().unwrap();
    for generation in GENERATIONS {
        let http = Http::start(wrapped.clone(), Mode::StatelessJson).await;
        let client = Client::over_http(&http, generation, Some(TOKEN)).await;
        for _ in 0..2 {
            if let Err(refused) = client.call("inbox", json!({})).await {
                printed.lock().unwrap().push(("a refusal", refused.to_string()));
            }
        }
    }
    let answers = wrapped.answers();
    assert!(answers.stats().loads > 0);
    let mut printed = std::mem::take(&mut *printed.lock().unwrap());
    printed.push(("the wrapper", format!("{wrapped:?} {wrapped:#?}")));
    printed.push(("the cache", format!("{answers:?} {answers:#?} {:?}", answers.stats())));
    printed.push(("the times", format!("{:?}", wrapped.timing())));
    printed.push(("the limiter", format!("{limiter:?} {:?}", limiter.stats())));
    for what in ["a principal", "a call", "a subject", "a refusal"] {
        assert!(printed.iter().any(|(kind, _)| *kind == what), "{what} was never printed");
    }
    for (what, printed) in printed {
        hides(what, &printed);
    }
}

#[test]
fn keys_and_principals_made_by_hand_are_not_shown() {
    let principal = Principal::new(TOKEN);
    hides("a principal", &format!("{principal:?} {principal:#?}"));
    let key = Key::private(TOKEN, TOKEN).part(TOKEN);
    hides("a key", &format!("{key:?} {key:#?}"));
    hides("a key", &format!("{:?}", Key::public(TOKEN)));
}

#[tokio::test]
async fn errors_do_not_show_what_a_tool_was_called_with() {
    let server = Scripted::new().tool("inbox", async |call| {
        let parts = call.context.extensions.get::<Parts>();
        assert!(parts.is_none(), "on purpose: a tool that panics with {TOKEN}");
        said("mail")
    });
    let wrapped = Performance::builder(server)
        .cache_tool("inbox", ToolPolicy::private(SECOND))
        .identity(Principal::of_authorization)
        .build()
        .unwrap();
    let http = Http::start(wrapped.clone(), Mode::StatelessJson).await;
    let client = Client::over_http(&http, crate::fixture::Generation::Modern, Some(TOKEN)).await;
    let error = client.call("inbox", json!({"password": TOKEN})).await.unwrap_err();
    hides("the error of a panic", &error.to_string());
    let error = Performance::builder(Scripted::new())
        .cache_tool("inbox", ToolPolicy::private(SECOND))
        .build()
        .map(|_| ())
        .unwrap_err();
    hides("an error", &format!("{error} {error:?} {error:#?}"));
}
