//! Logging set-up and the process's own counters (supervisor restarts, rejected control messages, and so on).
