//! Orlop on nodes as people have them: its own image and chart, and pods that a kubelet starts.

mod cli;
mod cluster;
mod gate;
mod install;
mod proxies;
