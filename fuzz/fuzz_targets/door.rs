//! What the receiver of pushes asks root for, and what a person with a key asks the receiver for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::entrance::check;
use mc_project::entrance::door::{Ask, read_answer, read_question, write_answer, write_question};
use mc_project::entrance::shell::words;
use mc_project_fuzz::{Input, assert_error, assert_shown, facts};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    match choice & 3 {
        0 | 1 => match read_question(input.0) {
            Ok(ask) => {
                let line = write_question(&ask).expect("it was short enough");
                assert!(!line.contains(&b'\n'));
                assert_eq!(read_question(&line).expect("our own line"), ask);
                if let Ask::Start { of, order } = &ask {
                    let now = "2026-09-21T13:20:00Z".parse().expect("a time");
                    match check::request(of, order, &facts(choice >> 2), now) {
                        Ok(request) => {
                            assert!(!request.pusher.is_empty() && request.pusher.len() < 4000);
                            assert_shown(&request.pusher, false);
                            assert!(request.wait_seconds.is_none_or(|seconds| seconds <= 60));
                        }
                        Err(error) => assert_error(&error),
                    }
                }
            }
            Err(error) => assert_error(&error),
        },
        2 => {
            if let Ok(answer) = read_answer(input.0) {
                let line = write_answer(&answer).expect("JSON");
                assert_eq!(read_answer(&line).expect("our own line"), answer);
            }
        }
        _ => match words::split(input.0) {
            Ok(words) => {
                assert!(words.iter().all(|word| !word.contains(char::is_control)));
                if let Err(error) = words::check(&words) {
                    assert_error(&error);
                }
            }
            Err(error) => assert_error(&error),
        },
    }
});
