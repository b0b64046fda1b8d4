//! `sock_ops`: publishes what only the dialling socket knows, under the name that its peer will see.
//!
//! At `TCP_CONNECT_CB` the source port is chosen and the SYN is not yet sent, so the entry is there
//! before the other side can accept.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
        BPF_SOCK_OPS_TIMEOUT_INIT,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};

use orlop_common::{DNS_PORT, REDIRECT_PORTS};

use crate::{
    context::{SockOps, store_with, stored},
    gate,
    maps::{ACCEPTED, AGENT_SOCKETS, CLIENTS, DIALLED, ORIGINAL_DST, REDIRECTED},
    services, trusted,
};

const TCP_CLOSE: u32 = 7;
const BPF_ANY: u64 = 0;
const DONE: u32 = 1;

#[sock_ops]
pub fn orlop_sockops(ctx: SockOpsContext) -> u32 {
    let ops = SockOps::new(&ctx);
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&ctx, &ops),
        BPF_SOCK_OPS_TIMEOUT_INIT => knock_again_soon(&ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => adopt(&ops),
        BPF_SOCK_OPS_TCP_LISTEN_CB => gate::listens(&ops),
        BPF_SOCK_OPS_STATE_CB if ops.new_state() == TCP_CLOSE => closed(&ops),
        _ => {}
    }
    DONE
}

/// A failed insert needs no verdict here: the proxy closes a connection without an original
/// destination, and a server then sees the proxy's own address.
#[inline(always)]
fn publish(ctx: &SockOpsContext, ops: &SockOps) {
    let socket = ops.socket();
    if socket.is_null() {
        return;
    }
    if let Some(client) = stored(&AGENT_SOCKETS, socket) {
        if client.port != 0 {
            ops.stays_in_pod();
            if CLIENTS.insert(ops.flow(), client, BPF_ANY).is_ok() {
                let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
            }
        }
    } else if let Some(mut dialled) = stored(&DIALLED, socket) {
        ops.stays_in_pod();
        if ORIGINAL_DST.insert(ops.flow(), dialled, BPF_ANY).is_err() {
            // Whatever a connection of the same name was.
            let _ = ORIGINAL_DST.remove(ops.flow());
        }
        if services::begins(&mut dialled) && store_with(&DIALLED, socket, &dialled) {
            let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
        }
        return;
    }
    if trusted::publish(ops, socket) {
        let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    }
    // Not redirected, whatever a connection of the same name was that nobody has accepted.
    let flow = ops.flow();
    if is_redirect(flow.destination_port) {
        let _ = ORIGINAL_DST.remove(flow);
    }
}

/// Whether redirected connections go to this port of the pod's own.
#[inline(always)]
fn is_redirect(port: u16) -> bool {
    REDIRECT_PORTS.contains(&port) || port == DNS_PORT
}

/// Asked as a socket is about to send its SYN, after `publish`. One that the agent's full queue has no room for is sent
/// again after some milliseconds: inside a pod there is nothing that a second's wait would spare, and who has waited so
/// long takes all the room that there is by then at once.
#[inline(always)]
fn knock_again_soon(ops: &SockOps) {
    let socket = ops.socket();
    if socket.is_null() {
        return;
    }
    if let Some(mut dialled) = stored(&DIALLED, socket)
        && ops.first_retry_soon()
    {
        dialled.hurried = 1;
        store_with(&DIALLED, socket, &dialled);
    }
}

#[inline(always)]
fn connected(ops: &SockOps) {
    let socket = ops.socket();
    if socket.is_null() {
        return;
    }
    if let Some(mut dialled) = stored(&DIALLED, socket)
        && dialled.hurried != 0
    {
        ops.usual_retries();
        dialled.hurried = 0;
        store_with(&DIALLED, socket, &dialled);
    }
    trusted::established(ops, socket);
}

/// Asked for by `publish`, for the agent's sockets, those that the kernel vouches for, and those that are counted.
#[inline(always)]
fn closed(ops: &SockOps) {
    let socket = ops.socket();
    if !socket.is_null() {
        if trusted::closed(ops, socket) {
            return;
        }
        if let Some(mut dialled) = stored(&DIALLED, socket) {
            services::ended(&mut dialled);
            store_with(&DIALLED, socket, &dialled);
            return;
        }
    }
    let _ = CLIENTS.remove(ops.flow());
}

/// The accepting end of the connections that `publish` tells of. The client is handed over to the server's
/// socket, and the original destination to the proxy's, which is there before the dialling side can close.
#[inline(always)]
fn adopt(ops: &SockOps) {
    let socket = ops.socket();
    if socket.is_null() {
        return;
    }
    let flow = ops.peers_flow();
    // SAFETY: copied at once; an entry replaced meanwhile was for a connection that has ended.
    if let Some(client) = unsafe { CLIENTS.get(flow) }.copied() {
        ops.stays_in_pod();
        store_with(&ACCEPTED, socket, &client);
    } else if is_redirect(flow.destination_port)
        // SAFETY: as above.
        && let Some(dialled) = unsafe { ORIGINAL_DST.get(flow) }.copied()
    {
        ops.stays_in_pod();
        // Without it the proxy closes the connection.
        store_with(&REDIRECTED, socket, &dialled);
        let _ = ORIGINAL_DST.remove(flow);
    } else {
        trusted::use_up(ops);
    }
}
