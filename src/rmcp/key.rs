//! The key of a tool's answer.
//!
//! Arguments are written in one canonical form: the members of every object in the order of their names.
//! Nothing else is normalised. `1` and `1.0`, or a member that is absent and one that is null, are the same
//! to some tools and not to others, so they are different keys: a hit that is missed costs a run, a hit that
//! should not be costs the truth.

use ::rmcp::{
    RoleServer,
    model::{JsonObject, ProtocolVersion, Tool},
    service::RequestContext,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128;

use super::policy::Principal;
use crate::cache::Key;

/// Arguments that are longer, written out, are represented by their SHA-256.
const LONGEST: usize = 256;

/// What the definition of a tool adds to its keys: a tool whose schema changed is another tool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Definition(u128);

impl Definition {
    pub(super) fn of(tool: Option<&Tool>) -> Self {
        let json = tool.and_then(|tool| serde_json::to_value(tool).ok());
        let mut bytes = Vec::new();
        json.inspect(|json| write(json, &mut bytes));
        Self(xxh3_128(&bytes))
    }
}

/// The key of a call; private to `principal` if there is one.
pub(super) fn of_call(
    tool: &str,
    definition: Definition,
    arguments: Option<&JsonObject>,
    context: &RequestContext<RoleServer>,
    principal: Option<&Principal>,
) -> Key<'static> {
    let mut canonical = Vec::with_capacity(128);
    if let Some(arguments) = arguments {
        write_object(arguments, &mut canonical);
    }
    if canonical.len() > LONGEST {
        // Whoever sends a mebibyte of arguments does not get a mebibyte of memory for it.
        canonical = Sha256::digest(&canonical).to_vec();
    }
    let generation: &[u8] = if speaks_2026(context) { b"2026" } else { b"legacy" };
    let key = match principal {
        Some(principal) => Key::private(principal.as_bytes(), "tools/call"),
        None => Key::public("tools/call"),
    };
    key.part(tool).part(&definition.0.to_le_bytes()).part(generation).part(&canonical).into_owned()
}

/// Whether results are of the shape of 2026-07-28 or later.
fn speaks_2026(context: &RequestContext<RoleServer>) -> bool {
    // Dates of this form compare as the days they name.
    context
        .protocol_version()
        .is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

fn write(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Object(object) => write_object(object, bytes),
        Value::Array(items) => {
            bytes.push(b'[');
            for item in items {
                write(item, bytes);
                bytes.push(b',');
            }
            bytes.push(b']');
        }
        scalar => write_json(scalar, bytes),
    }
}

fn write_object(object: &JsonObject, bytes: &mut Vec<u8>) {
    // Sorted already, unless somebody in the build turned on serde_json's `preserve_order`.
    let mut members: Vec<(&String, &Value)> = object.iter().collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    bytes.push(b'{');
    for (name, value) in members {
        write_json(name, bytes);
        bytes.push(b':');
        write(value, bytes);
        bytes.push(b',');
    }
    bytes.push(b'}');
}

/// A scalar or a name. Writing one to memory cannot fail.
fn write_json<T: serde::Serialize + ?Sized>(scalar: &T, bytes: &mut Vec<u8>) {
    let _ = serde_json::to_writer(bytes, scalar);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> String {
        let mut bytes = Vec::new();
        write(&serde_json::from_str(json).unwrap(), &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn order_of_members_does_not_matter_and_nothing_else_is_lost() {
        assert_eq!(
            canonical(r#"{"b":[{"y":1,"x":2}],"a":null}"#),
            canonical(r#"{"a":null,"b":[{"x":2,"y":1}]}"#)
        );
        let different = [
            r#"{"a":1}"#,
            r#"{"a":1.0}"#,
            r#"{"a":"1"}"#,
            r#"{"a":null}"#,
            "{}",
            r#"{"a":[1,2]}"#,
            r#"{"a":[2,1]}"#,
            r#"{"a":[[1],2]}"#,
            r#"{"a:1,\"b":1}"#,
            r#"{"a":{"b":1}}"#,
        ];
        for (index, one) in different.iter().enumerate() {
            for two in &different[..index] {
                assert_ne!(canonical(one), canonical(two));
            }
        }
    }

    #[test]
    fn tool_with_another_schema_is_another_tool() {
        let tool =
            |schema: Value| Tool::new("search", "", std::sync::Arc::new(schema.as_object().unwrap().clone()));
        let (one, two) = (
            tool(serde_json::json!({"type": "object"})),
            tool(serde_json::json!({"type": "object", "required": ["query"]})),
        );
        assert_ne!(Definition::of(Some(&one)).0, Definition::of(Some(&two)).0);
        assert_ne!(Definition::of(Some(&one)).0, Definition::of(None).0);
    }
}
