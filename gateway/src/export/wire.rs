//! shim until crate::wire::split is merged
use crate::base::Signal;
use bytes::Bytes;
#[derive(Debug, thiserror::Error)]
#[error("item too large")]
pub(crate) struct ItemTooLarge;
pub(crate) fn split(_payload: &Bytes, _signal: Signal, _max: usize) -> Result<Vec<(Bytes, u32)>, ItemTooLarge> {
    Err(ItemTooLarge)
}
