//! Whole clusters on this machine, driven by the commands that a person types: first with VMs in memory, then with real
//! ones. What cannot run here says why, and what would run it.

mod agent;
mod balancers;
mod bed;
mod certificates;
mod dhcp;
mod fake;
mod foreign;
mod groups;
mod guest;
mod images;
mod names;
mod networks;
mod outside;
mod real;
mod rootless;
mod volumes;
