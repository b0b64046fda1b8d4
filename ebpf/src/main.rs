//! Orlop's hooks. Each one looks up, decides and returns one verdict; the default is refuse.
//!
//! They are attached once at the cgroup2 root (`inbound`: once per pod netns) and pinned, so they
//! stay in force while the agent is away. A socket outside every enrolled pod is left as it is.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod connect;
mod context;
mod dns;
mod events;
mod gate;
mod inbound;
mod maps;
mod packets;
mod peername;
mod services;
mod sockops;
mod trusted;
mod udp;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program that could get here, so it is never reached.
    unsafe { core::hint::unreachable_unchecked() }
}
