//! Where the programs of the arms are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where shim/build-static puts the shim, below cargo's directory.
const STATIC_SHIM: &str = "static/x86_64-unknown-linux-musl/shim/pillion-shim";

/// Paths of programs; `None`: not there.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `pillion`.
    pub pillion: Option<PathBuf>,
    /// `pillion-shim`; without it `pillion shim` is used, which does the same and is larger.
    pub shim: Option<PathBuf>,
    /// The cache of what others make.
    pub cache: PathBuf,
}

impl Programs {
    /// Looks beside this program, where cargo puts both of them, and in the cache.
    pub fn find(pillion: Option<PathBuf>, shim: Option<PathBuf>, cache: Option<PathBuf>) -> Result<Self> {
        let own = std::env::current_exe()?;
        let beside = |name: &str| own.parent().map(|dir| dir.join(name)).filter(|path| path.is_file());
        let cache = match cache.or_else(|| std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from)) {
            Some(cache) => cache,
            None => match std::env::var_os("HOME") {
                Some(home) => Path::new(&home).join(".cache"),
                None => bail!("neither --cache, XDG_CACHE_HOME nor HOME says where the cache is"),
            },
        };
        let static_shim = own.ancestors().nth(2).map(|target| target.join(STATIC_SHIM));
        Ok(Self {
            pillion: pillion.or_else(|| beside("pillion")),
            shim: shim.or_else(|| static_shim.filter(|path| path.is_file())),
            cache: cache.join("pillion-loadtest"),
        })
    }

    /// A program of the cache, if it was put there.
    pub fn cached(&self, name: &str) -> Option<PathBuf> {
        Some(self.cache.join(name)).filter(|path| path.is_file())
    }
}
