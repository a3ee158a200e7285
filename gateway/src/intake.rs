//! OTLP on one connection of one tenant: gRPC and HTTP told apart by the first bytes, limits, decoding, one reply mapper.
