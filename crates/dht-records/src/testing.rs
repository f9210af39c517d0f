//! A node for tests.
