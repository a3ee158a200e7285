//! /livez, /readyz, /metrics, /tenants, /sink and the page, from snapshots only. Nothing here can delay data.
