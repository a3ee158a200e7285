//! The sink's two transports, told apart by the first bytes.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Fault, Received, Shared};

/// Accepts until told to stop; connections end with it.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking listener, inside a runtime");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Ok or Err: the sink is gone.
            _ = stopped.changed() => return,
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let shared = shared.clone();
                    // A connection that fails is the client's to notice.
                    connections.spawn(async move { drop(serve(stream, shared).await) });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; 3];
    loop {
        let peeked = stream.peek(&mut first).await?;
        ensure!(peeked > 0, "closed before the first byte");
        if peeked == first.len() {
            break;
        }
        stream.readable().await?;
    }
    if &first == b"PRI" { grpc(stream, shared).await } else { http(stream, shared).await }
}

async fn grpc(stream: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(8 << 20)
        .initial_connection_window_size(64 << 20)
        .max_concurrent_streams(1_000)
        .handshake(stream)
        .await?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if shared.fault() == Fault::Drop {
            return Ok(());
        }
        let shared = shared.clone();
        streams.spawn(async move { drop(grpc_call(request, respond, shared).await) });
        while streams.try_join_next().is_some() {}
    }
    Ok(())
}

async fn grpc_call(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    shared: Arc<Shared>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    ensure!(message.len() >= 5, "a gRPC message has a prefix of five bytes");
    let length = message.len();
    let prefix = message.split_to(5);
    let payload = decompress(&head.headers, "grpc-encoding", message.freeze(), prefix[0] == 1)?;
    let received = Received { path: head.uri.path().to_owned(), headers: flatten(&head.headers), payload };
    shared.paced().await;
    let (status, _) = shared.take(received, length).statuses();
    let response = Response::builder().header("content-type", "application/grpc");
    if status != 0 {
        respond.send_response(response.header("grpc-status", status).body(())?, true)?;
        return Ok(());
    }
    let mut answer = respond.send_response(response.body(())?, false)?;
    answer.send_data(Bytes::from_static(&[0; 5]), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    answer.send_trailers(trailers)?;
    Ok(())
}

async fn http(stream: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let length = body.len();
            let compressed = head.headers.contains_key("content-encoding");
            let payload = decompress(&head.headers, "content-encoding", body, compressed)?;
            let received = Received { path: head.uri.path().to_owned(), headers: flatten(&head.headers), payload };
            shared.paced().await;
            let (_, status) = shared.take(received, length).statuses();
            let response = Response::builder()
                .status(StatusCode::from_u16(status)?)
                .header("content-type", "application/x-protobuf")
                .body(Full::new(Bytes::new()))?;
            anyhow::Ok(response)
        }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

/// Undoes gzip; a test backend trusts its sender, so there is no cap.
fn decompress(headers: &HeaderMap, name: &str, body: Bytes, compressed: bool) -> Result<Bytes> {
    let encoding = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("identity");
    if !compressed || encoding == "identity" {
        return Ok(body);
    }
    let mut out = Vec::new();
    match encoding {
        "gzip" => std::io::copy(&mut flate2::bufread::GzDecoder::new(&body[..]), &mut out),
        "zstd" => std::io::copy(&mut zstd::stream::read::Decoder::new(&body[..])?, &mut out),
        other => anyhow::bail!("the sink does not know the encoding {other:?}"),
    }
    .with_context(|| format!("decoding {encoding}"))?;
    Ok(out.into())
}

fn flatten(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into())).collect()
}
