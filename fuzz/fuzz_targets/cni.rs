//! Any environment and any bytes on stdin as a call of the CNI plugin: a request, or an error that is JSON.
//!
//! Input: lines `NAME=value`, an empty line, then stdin.
#![no_main]

use std::collections::BTreeMap;

use cni::Request;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let split = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, stdin) = split.map_or((data, &[][..]), |at| (&data[..at], &data[at + 2..]));
    let head = String::from_utf8_lossy(head);
    let env: BTreeMap<String, String> =
        head.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    match Request::parse(&env, stdin) {
        Ok(request) => _ = request.version(),
        Err((error, version)) => {
            let answer: Value = serde_json::from_str(&error.render(version)).expect("an error is JSON");
            assert!(answer["code"].is_u64() && answer["msg"].is_string());
        }
    }
});
