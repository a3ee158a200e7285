//! The gRPC services that the kubelet calls, on the driver's two sockets.
//!
//! Owns routing, and the answers that never change. What touches a volume is handed to the driver's loop over a bounded
//! channel, and answered when that is done. It ends when dropped, with every connection.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pillion_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    InfoRequest, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    PluginInfo, ProbeRequest, ProbeResponse, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

use super::DRIVER;
use super::request::Refusal;

/// Of the CSI specification: the kubelet wants the same major version.
const SPEC_VERSION: &str = "1.0.0";

/// The kubelet keeps two or three; more wait in the backlog.
const CONNECTIONS_MAX: usize = 16;

/// After an accept that failed (no file descriptors left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Calls at once on a connection.
const STREAMS_MAX: u32 = 64;

const HEADER_BYTES_MAX: u32 = 16 * 1024;

const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// A call that the driver's loop answers.
#[derive(Debug)]
pub(super) enum Call {
    Publish(NodePublishVolumeRequest, Answer),
    Unpublish(NodeUnpublishVolumeRequest, Answer),
}

/// Where the outcome goes. The kubelet may have gone by then.
pub(super) type Answer = oneshot::Sender<Result<(), Refusal>>;

/// What all calls share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) node_name: String,
    /// The path of the driver's own socket, as the kubelet sees it.
    pub(super) endpoint: String,
    pub(super) calls: mpsc::Sender<Call>,
}

/// Serves on a listening socket for as long as the task lives.
pub(super) fn serve(listener: OwnedFd, context: Arc<Context>, tasks: &mut JoinSet<()>) -> io::Result<()> {
    let listener = UnixListener::from_std(listener.into())?;
    tasks.spawn(accept(listener, context));
    Ok(())
}

async fn accept(listener: UnixListener, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => drop(connections.spawn(converse(stream, Arc::clone(&context)))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the kubelet");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn converse(stream: UnixStream, context: Arc<Context>) {
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(route(request, context).await) }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the kubelet ended");
    }
}

async fn route(request: Request<Incoming>, context: Arc<Context>) -> Response<Body> {
    match request.uri().path() {
        "/pluginregistration.Registration/GetInfo" => answer(request, context, info).await,
        "/pluginregistration.Registration/NotifyRegistrationStatus" => answer(request, context, registered).await,
        "/csi.v1.Identity/GetPluginInfo" => answer(request, context, plugin_info).await,
        "/csi.v1.Identity/GetPluginCapabilities" => answer(request, context, plugin_capabilities).await,
        "/csi.v1.Identity/Probe" => answer(request, context, probe).await,
        "/csi.v1.Node/NodeGetInfo" => answer(request, context, node_info).await,
        "/csi.v1.Node/NodeGetCapabilities" => answer(request, context, node_capabilities).await,
        "/csi.v1.Node/NodePublishVolume" => answer(request, context, publish).await,
        "/csi.v1.Node/NodeUnpublishVolume" => answer(request, context, unpublish).await,
        other => Status::unimplemented(format!("{DRIVER} does not serve {other}")).into_http(),
    }
}

/// What a call comes to.
type Reply<A> = BoxFuture<'static, Result<A, Status>>;

fn info(context: Arc<Context>, _: InfoRequest) -> Reply<PluginInfo> {
    ready(PluginInfo {
        r#type: "CSIPlugin".to_owned(),
        name: DRIVER.to_owned(),
        endpoint: context.endpoint.clone(),
        supported_versions: vec![SPEC_VERSION.to_owned()],
    })
}

fn registered(_: Arc<Context>, status: RegistrationStatus) -> Reply<RegistrationStatusResponse> {
    if status.plugin_registered {
        tracing::info!(driver = DRIVER, "the kubelet has registered the driver");
    } else {
        tracing::error!(driver = DRIVER, error = status.error, "the kubelet refuses the driver: no pod can use it");
    }
    ready(RegistrationStatusResponse {})
}

fn plugin_info(_: Arc<Context>, _: GetPluginInfoRequest) -> Reply<GetPluginInfoResponse> {
    ready(GetPluginInfoResponse { name: DRIVER.to_owned(), vendor_version: env!("CARGO_PKG_VERSION").to_owned() })
}

fn plugin_capabilities(_: Arc<Context>, _: GetPluginCapabilitiesRequest) -> Reply<GetPluginCapabilitiesResponse> {
    ready(GetPluginCapabilitiesResponse {})
}

fn probe(_: Arc<Context>, _: ProbeRequest) -> Reply<ProbeResponse> {
    ready(ProbeResponse { ready: Some(true) })
}

fn node_info(context: Arc<Context>, _: NodeGetInfoRequest) -> Reply<NodeGetInfoResponse> {
    ready(NodeGetInfoResponse { node_id: context.node_name.clone(), max_volumes_per_node: 0 })
}

fn node_capabilities(_: Arc<Context>, _: NodeGetCapabilitiesRequest) -> Reply<NodeGetCapabilitiesResponse> {
    ready(NodeGetCapabilitiesResponse {})
}

fn publish(context: Arc<Context>, request: NodePublishVolumeRequest) -> Reply<NodePublishVolumeResponse> {
    Box::pin(async move {
        ask(&context, |answer| Call::Publish(request, answer)).await?;
        Ok(NodePublishVolumeResponse {})
    })
}

fn unpublish(context: Arc<Context>, request: NodeUnpublishVolumeRequest) -> Reply<NodeUnpublishVolumeResponse> {
    Box::pin(async move {
        ask(&context, |answer| Call::Unpublish(request, answer)).await?;
        Ok(NodeUnpublishVolumeResponse {})
    })
}

fn ready<A: Send + 'static>(message: A) -> Reply<A> {
    Box::pin(std::future::ready(Ok(message)))
}

/// Has the loop do it.
async fn ask(context: &Context, call: impl FnOnce(Answer) -> Call) -> Result<(), Status> {
    let (answer, outcome) = oneshot::channel();
    let stopping = || Status::unavailable("the driver is stopping");
    context.calls.send(call(answer)).await.map_err(|_| stopping())?;
    let outcome = outcome.await.map_err(|_| stopping())?;
    outcome.map_err(|refusal| Status::new(refusal.code, refusal.reason))
}

/// One unary call.
async fn answer<Q, A>(
    request: Request<Incoming>,
    context: Arc<Context>,
    handle: fn(Arc<Context>, Q) -> Reply<A>,
) -> Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
{
    let mut grpc = Grpc::new(ProstCodec::<A, Q>::default()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    grpc.unary(Handler { context, handle }, request).await
}

struct Handler<Q, A> {
    context: Arc<Context>,
    handle: fn(Arc<Context>, Q) -> Reply<A>,
}

impl<Q, A: 'static> UnaryService<Q> for Handler<Q, A> {
    type Response = A;
    type Future = Reply<tonic::Response<A>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        (self.handle)(Arc::clone(&self.context), request.into_inner()).map_ok(tonic::Response::new).boxed()
    }
}
