//! JSON schemas: their keywords, how they are handed to llguidance, and where in one something is wrong.

use llguidance::api::GrammarWithLexer;
use serde_json::{json, Value};

use super::bounds::{exclude, inexact};
use crate::excerpt::excerpt;

/// All keywords of the drafts from 4 to 2020-12. Those that cannot be followed are refused by llguidance.
const KEYWORDS: [&str; 64] = [
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$dynamicRef",
    "$id",
    "$recursiveAnchor",
    "$recursiveRef",
    "$ref",
    "$schema",
    "$vocabulary",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "definitions",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "deprecated",
    "description",
    // Of OpenAPI, which Pydantic writes beside `oneOf`; it says nothing that `oneOf` does not.
    "discriminator",
    "else",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "id",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "readOnly",
    "required",
    "then",
    "title",
    "type",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "writeOnly",
];

/// What a keyword begins with that is somebody's own.
const OWN: &str = "x-";

/// Where schemas that are referred to by name stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// What is wrong with a schema that llguidance would not say, with the JSON pointer to its part: a keyword that is none (a misspelt one
/// would bound nothing, and nobody would know), or a bound that cannot be followed.
pub fn wrong_part(schema: &Value) -> Option<(String, String)> {
    if let Some(what) = unknown_keyword(schema).or_else(|| inexact(schema)) {
        return Some((String::new(), what));
    }
    parts(schema).into_iter().find_map(|(pointer, part)| {
        let (inner, what) = wrong_part(part)?;
        Some((pointer + &inner, what))
    })
}

/// What is wrong with the first keyword of a schema that is none.
fn unknown_keyword(schema: &Value) -> Option<String> {
    let known = |keyword: &str| KEYWORDS.contains(&keyword) || keyword.starts_with(OWN);
    let mut keywords = schema.as_object().into_iter().flat_map(|all| all.keys());
    let keyword = keywords.find(|keyword| !known(keyword))?;
    let alike = |other: &&&str| other.eq_ignore_ascii_case(keyword);
    let expected = match KEYWORDS.iter().find(alike) {
        Some(meant) => format!("{meant:?}"),
        None => format!("one of JSON schema's, or one that begins with {OWN:?}"),
    };
    let given = excerpt(keyword);
    Some(format!("the keyword is {given:?}, expected {expected}"))
}

/// Text of a schema as it is usually written, so that no tokens are spent on other blanks, unless the schema says how.
pub fn schema_grammar(schema: &Value) -> GrammarWithLexer {
    const STYLE: &str = "x-guidance";
    let mut schema = schema.clone();
    exclude(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.entry(STYLE).or_insert_with(|| {
            json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
        });
    }
    GrammarWithLexer::from_json_schema(schema)
}

/// The innermost part of a schema of which `build` says the same by itself, as a JSON pointer. `root` has the definitions.
pub fn place(
    schema: &Value,
    root: &Value,
    what: &str,
    build: &dyn Fn(GrammarWithLexer) -> Result<(), String>,
) -> String {
    for (pointer, part) in parts(schema) {
        let mut alone = part.clone();
        if let Some(fields) = alone.as_object_mut() {
            for definitions in DEFINITIONS {
                if let Some(all) = root.get(definitions) {
                    fields.entry(definitions).or_insert_with(|| all.clone());
                }
            }
        }
        let outcome = build(schema_grammar(&alone));
        if outcome.is_err_and(|error| error == what) {
            return pointer + &place(part, root, what, build);
        }
    }
    String::new()
}

/// Keywords of the schemas that a schema is made of: by name, in a list, and alone.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const LISTED: [&str; 5] = ["prefixItems", "items", "anyOf", "oneOf", "allOf"];
const SINGLE: [&str; 4] = ["items", "additionalItems", "additionalProperties", "not"];

/// The schemas that a schema is made of, with the JSON pointers to them.
pub fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let mut parts = Vec::new();
    for keyword in NAMED {
        for (name, part) in schema[keyword].as_object().into_iter().flatten() {
            let name = excerpt(&name.replace('~', "~0").replace('/', "~1"));
            parts.push((format!("/{keyword}/{name}"), part));
        }
    }
    for keyword in LISTED {
        let listed = schema[keyword].as_array().into_iter().flatten();
        parts.extend(
            listed
                .enumerate()
                .map(|(i, part)| (format!("/{keyword}/{i}"), part)),
        );
    }
    for keyword in SINGLE {
        let single = schema.get(keyword).filter(|part| part.is_object());
        parts.extend(single.map(|part| (format!("/{keyword}"), part)));
    }
    parts
}

/// The same to be changed.
pub fn parts_mut(schema: &mut Value) -> Vec<&mut Value> {
    let fields = schema.as_object_mut().into_iter().flatten();
    let parts = fields.flat_map(|(keyword, value)| -> Vec<&mut Value> {
        let is_in = |keywords: &[&str]| keywords.contains(&keyword.as_str());
        if value.is_object() && is_in(&SINGLE) {
            return vec![value];
        }
        match value {
            Value::Object(parts) if is_in(&NAMED) => parts.values_mut().collect(),
            Value::Array(parts) if is_in(&LISTED) => parts.iter_mut().collect(),
            _ => Vec::new(),
        }
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_that_are_none_are_found_where_they_stand_and_names_are_no_keywords() {
        let found = |schema: Value| {
            wrong_part(&schema).map(|(pointer, what)| format!("#{pointer}: {what}"))
        };
        let misspelt = json!({ "properties": { "a": { "items": [{ "maxlength": 3 }] } } });
        assert_eq!(
            found(misspelt).unwrap(),
            r##"#/properties/a/items/0: the keyword is "maxlength", expected "maxLength""##
        );
        let unheard = found(json!({ "anyOf": [true, { "maximal": 3 }] })).unwrap();
        assert!(unheard.starts_with(r##"#/anyOf/1: the keyword is "maximal", expected one of"##));
        let fine = json!({
            "properties": { "maxlength": { "const": { "maximal": 1 } } },
            "$defs": { "maximal": { "enum": [{ "maxlength": 1 }], "x-mine": 2 } },
            "default": { "maxlength": 3 },
        });
        assert_eq!(found(fine), None);
    }
}
