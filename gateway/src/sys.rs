//! System calls that need `unsafe`, each wrapped once. Everything else goes through rustix.
