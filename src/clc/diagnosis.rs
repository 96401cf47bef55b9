//! SMC's diagnosis codes: why a connection is not, or no longer, SMC.

use std::fmt;

/// The reason given in a Decline, or recorded locally; codes unknown here are kept.
///
/// ```
/// use tokio_smc::Diagnosis;
/// let diagnosis = Diagnosis::from_code(0x0301_0000);
/// assert_eq!(diagnosis, Diagnosis::PEERNOSMC);
/// assert_eq!(diagnosis.to_string(), "peer did not signal SMC (0x03010000)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Diagnosis(u32);

macro_rules! diagnoses {
    ($($name:ident = $code:literal, $words:literal;)*) => {
        /// Linux' `SMC_CLC_DECL_*` codes (`net/smc/smc_clc.h`).
        impl Diagnosis {
            $(#[doc = concat!("`", stringify!($code), "`: ", $words, ".")]
            pub const $name: Self = Self($code);)*

            /// Every code that has a name.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// SMC's short name, such as "PEERNOSMC".
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The reason in plain words.
            pub fn words(self) -> &'static str {
                match self.0 {
                    $($code => $words,)*
                    _ => "unknown diagnosis",
                }
            }
        }
    };
}

diagnoses! {
    MEM = 0x0101_0000, "out of memory, buffers or descriptors";
    TIMEOUT_CL = 0x0201_0000, "the link was not confirmed in time";
    TIMEOUT_AL = 0x0202_0000, "the second link was not added in time";
    CNFERR = 0x0300_0000, "configuration error";
    PEERNOSMC = 0x0301_0000, "peer did not signal SMC";
    IPSEC = 0x0302_0000, "the route is subject to IPsec";
    NOSMCDEV = 0x0303_0000, "no SMC device, neither SMC-R nor SMC-D";
    NOSMCDDEV = 0x0303_0001, "no usable SMC-D device, or no EID in common";
    NOSMCRDEV = 0x0303_0002, "no usable SMC-R device";
    NOISM2SUPP = 0x0303_0003, "the device does not support ISM version 2";
    NOV2EXT = 0x0303_0004, "version 2 proposed without its extension";
    NOV2DEXT = 0x0303_0005, "SMC-D version 2 proposed without its extension";
    NOSEID = 0x0303_0006, "peer sent no system EID";
    NOSMCD2DEV = 0x0303_0007, "no SMC-D version 2 device with that CHID and GID";
    NOUEID = 0x0303_0008, "peer sent no EID";
    RELEASEERR = 0x0303_0009, "the releases do not agree";
    MAXCONNERR = 0x0303_000a, "the numbers of connections do not agree";
    MAXLINKERR = 0x0303_000b, "the numbers of links do not agree";
    MODEUNSUPP = 0x0304_0000, "the answer's mode was not proposed";
    RMBE_EC = 0x0305_0000, "the peer's buffer has a different eyecatcher";
    OPTUNSUPP = 0x0306_0000, "socket option not supported with SMC";
    DIFFPREFIX = 0x0307_0000, "different IP prefix or subnet";
    GETVLANERR = 0x0308_0000, "the VLAN id could not be found";
    ISMVLANERR = 0x0309_0000, "the VLAN id could not be registered with the device";
    NOACTLINK = 0x030a_0000, "no active link in the link group";
    NOSRVLINK = 0x030b_0000, "the server's link was not found";
    VERSMISMAT = 0x030c_0000, "the versions do not agree";
    MAX_DMB = 0x030d_0000, "the device has no DMB left";
    NOROUTE = 0x030e_0000, "no route to the peer";
    NOINDIRECT = 0x030f_0000, "an indirect route is not possible";
    SYNCERR = 0x0400_0000, "the link groups are out of step";
    PEERDECL = 0x0500_0000, "peer declined";
    INTERR = 0x0999_0000, "internal error";
    ERR_RTOK = 0x0999_0001, "internal error: no room for a remote token";
    ERR_RDYLNK = 0x0999_0002, "internal error: the link did not become ready";
    ERR_REGBUF = 0x0999_0003, "internal error: the buffer could not be registered";
}

impl Diagnosis {
    /// A diagnosis as it came from a peer.
    pub const fn from_code(code: u32) -> Self {
        Self(code)
    }

    /// The code as it stands in a Decline and in `smcss`.
    pub const fn code(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#010x})", self.words(), self.0)
    }
}

impl fmt::Debug for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "Diagnosis({name})"),
            None => write!(f, "Diagnosis({:#010x})", self.0),
        }
    }
}
