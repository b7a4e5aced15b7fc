//! From a whole command line to the configuration.

mod config_file;
mod flags;
