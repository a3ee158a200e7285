//! Protobuf's wire format as far as OTLP needs it: tags, varints, lengths; and cutting a request at its items.
//!
//! Pure, no allocation on the reading side. Knows OTLP's field numbers, never its types.
