//! The macro that makes a configuration's struct, defaults and descriptions from one list.

/// Defines a configuration by its parameters, so that each is described in one place.
///
/// A parameter is its description as a doc comment and a line
///
/// ```text
/// field: Type = default, name "other_name", range 1..=8, unit "tokens", read by [InfMllm], set Running;
/// ```
///
/// of which everything after the default may be left out: it is named as its field, has no unit, is read by all policies and is
/// set while no model is loaded; `range` is for numbers, which have one. Who names readers has the `PolicyKind` in scope. `parts` are fields that are such configurations themselves,
/// `others` are fields that are no parameters.
macro_rules! parameters {
    (
        section $section:literal;
        $(#[$outer:meta])*
        pub struct $config:ident {
            $(
                $(#[doc = $about:literal])+
                $field:ident: $type:ty = $default:expr
                    $(, name $name:literal)?
                    $(, range $range:expr)?
                    $(, unit $unit:literal)?
                    $(, read by [$($reader:ident),+])?
                    $(, set $settable:ident)?;
            )*
        }
        parts {
            $( $(#[$part_meta:meta])* $part:ident: $part_type:ty; )*
        }
        others {
            $( $(#[$other_meta:meta])* $other:ident: $other_type:ty = $other_default:expr; )*
        }
    ) => {
        $(#[$outer])*
        pub struct $config {
            $( $(#[doc = $about])+ pub $field: $type, )*
            $( $(#[$part_meta])* pub $part: $part_type, )*
            $( $(#[$other_meta])* pub $other: $other_type, )*
        }

        impl Default for $config {
            fn default() -> Self {
                Self {
                    $( $field: $default, )*
                    $( $part: Default::default(), )*
                    $( $other: $other_default, )*
                }
            }
        }

        impl $crate::cache::parameter::Parameters for $config {
            fn list() -> Vec<$crate::cache::parameter::Parameter> {
                #[allow(unused_mut, reason = "there may be no parts")]
                let mut list = vec![ $(
                    $crate::cache::parameter::Parameter {
                        name: $crate::cache::parameter::parameters!(@or [$($name)?] stringify!($field)),
                        about: concat!($($about),+).trim(),
                        unit: $crate::cache::parameter::parameters!(@or [$($unit)?] ""),
                        kind: <$type as $crate::cache::parameter::Setting>::kind(
                            $crate::cache::parameter::parameters!(@or [$($range)?] ()),
                        ),
                        default: {
                            let default: $type = $default;
                            $crate::cache::parameter::Setting::value(&default)
                        },
                        readers: const { &[ $($( PolicyKind::$reader.name(), )+)? ] },
                        settable: $crate::cache::parameter::parameters!(
                            @or [$($crate::cache::parameter::Settable::$settable)?]
                                $crate::cache::parameter::Settable::Unconfigured
                        ),
                        section: $section,
                    },
                )* ];
                $( list.extend(<$part_type as $crate::cache::parameter::Parameters>::list()); )*
                list
            }

            fn get(&self, name: &str) -> Option<$crate::cache::parameter::Value> {
                $(
                    if name == $crate::cache::parameter::parameters!(@or [$($name)?] stringify!($field)) {
                        return Some($crate::cache::parameter::Setting::value(&self.$field));
                    }
                )*
                None $( .or_else(|| $crate::cache::parameter::Parameters::get(&self.$part, name)) )*
            }

            fn put(&mut self, name: &str, value: &$crate::cache::parameter::Value) -> bool {
                $(
                    if name == $crate::cache::parameter::parameters!(@or [$($name)?] stringify!($field)) {
                        let given = $crate::cache::parameter::Setting::of(value);
                        return given.map(|given| self.$field = given).is_some();
                    }
                )*
                false $( || $crate::cache::parameter::Parameters::put(&mut self.$part, name, value) )*
            }
        }
    };
    (@or [$given:expr] $otherwise:expr) => { $given };
    (@or [] $otherwise:expr) => { $otherwise };
}

pub(crate) use parameters;
