//! Whether a pinned map has the layout that the object expects. Checked before loading, because the loader opens
//! whatever is pinned, and a different layout means memory errors. Pure.

use crate::bpf::map::MapInfo;

/// What makes two maps interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// Why a pinned map cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "its size is {pinned} entries, but {wanted} are configured: configure the pinned size, or run \
         `shunt cleanup` first (Services are down until shunt runs again)"
    )]
    Size { pinned: u32, wanted: u32 },
    #[error(
        "its {what} is {pinned} and this version's is {wanted}: it belongs to another program or version; run \
         the `shunt cleanup` of that version, or choose another --bpffs"
    )]
    Layout { what: &'static str, pinned: u32, wanted: u32 },
}

impl From<&MapInfo> for Layout {
    fn from(info: &MapInfo) -> Self {
        Self {
            map_type: info.map_type,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.map_flags,
        }
    }
}

impl Layout {
    /// Whether a map pinned with this layout can be used for `wanted`.
    pub fn serves(&self, wanted: &Self) -> Result<(), Mismatch> {
        let fields = [
            ("type", self.map_type, wanted.map_type),
            ("key size", self.key_size, wanted.key_size),
            ("value size", self.value_size, wanted.value_size),
            ("flags", self.flags, wanted.flags),
        ];
        for (what, pinned, wanted) in fields {
            if pinned != wanted {
                return Err(Mismatch::Layout { what, pinned, wanted });
            }
        }
        if self.max_entries != wanted.max_entries {
            return Err(Mismatch::Size { pinned: self.max_entries, wanted: wanted.max_entries });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Layout = Layout { map_type: 1, key_size: 20, value_size: 32, max_entries: 1024, flags: 1 };

    #[test]
    fn only_the_same_serves() {
        assert_eq!(HASH.serves(&HASH), Ok(()));
        let bigger = Layout { max_entries: 2048, ..HASH };
        let size = HASH.serves(&bigger).unwrap_err();
        assert_eq!(size, Mismatch::Size { pinned: 1024, wanted: 2048 });
        assert!(size.to_string().contains("shunt cleanup"));
        // A different kind of map is reported as such, even if its size differs too.
        let foreign = Layout { value_size: 8, ..bigger };
        assert_eq!(
            foreign.serves(&HASH),
            Err(Mismatch::Layout { what: "value size", pinned: 8, wanted: 32 })
        );
    }
}
