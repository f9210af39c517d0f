//! What the store promises as an iroh-blobs store, beside iroh's own in-memory store, on each backend.
#![allow(clippy::unwrap_used)] // a test that unwraps an error fails, which is what it is for

/// Makes each of the named functions a test on every backend. They get an open store, which is closed after them.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        on_each_backend!(in veilid, Veilid: $($test),*);
        on_each_backend!(in memory, Memory: $($test),*);
    };
    (in $module:ident, $backend:ident: $($test:ident),*) => {
        mod $module {
            use crate::support::{Backend, Place};

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let place = Place::new(Backend::$backend).await;
                    let store = place.open().await;
                    super::$test(store.clone()).await;
                    store.close().await.unwrap();
                    place.end().await;
                }
            )*
        }
    };
}

mod damage;
mod erasing;
mod errors;
mod export;
mod gc;
mod import;
mod lifecycle;
mod partial;
mod plaintext;
mod streams;
mod support;
mod tags;
mod transfer;
