//! The real `limpet-controller`, started, killed and started again, over real files and sockets.

mod api;
mod files;
mod process;
mod restarts;
