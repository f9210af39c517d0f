//! What the integration tests, the demo and the benchmarks share.
#![cfg(target_os = "linux")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]

pub mod device;
pub mod peers;
pub mod raw;

use std::{collections::BTreeMap, time::Duration};

/// Asks the network until it answers, for [`peers::LIMIT`] at most. That nobody answered a call is no failure of a test: an error that
/// passes by itself is what every caller has to expect.
///
/// # Panics
/// At any other error, and when the time is over.
pub async fn answered<T, E, F>(ask: impl Fn() -> F) -> T
where
    E: Into<group::Error>,
    F: Future<Output = Result<T, E>>,
{
    let mut errors = BTreeMap::<String, usize>::new();
    let asking = async {
        loop {
            match ask().await.map_err(Into::<group::Error>::into) {
                Ok(answer) => return answer,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    *errors.entry(format!("{error:?}")).or_default() += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    match tokio::time::timeout(peers::LIMIT, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("nobody answered for {:?}: {errors:?}", peers::LIMIT),
    }
}
