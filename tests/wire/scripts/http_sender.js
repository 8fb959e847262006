// Senders of plain HTTP: hyco-https's own `request` with `createRelayHttpsUri` and `createRelayToken`, which are those of
// Node, or plain `fetch`.
//
// Commands:
//   request  n, host, path, token or {uri, rule, key, seconds}, method, headers ([[name, value], ...]), query,
//            size and seed of the body, pieces (sizes of a chunked body), port: over hyco-https
//   fetch    n, url, method, headers, size and seed: with Node's fetch
//   uri      host, path, token, id: what createRelayHttpsUri makes
// Events: answered (n, status, reason, headers, size, sha256, body where it is short), failed (n, message), uri
'use strict';

const crypto = require('crypto');
const { obey, make, report } = require('./content');
const https = require('hyco-https');

const SHORT = 200000;

function tell(n, status, reason, headers, body) {
  report('answered', {
    n,
    status,
    reason,
    headers,
    size: body.length,
    sha256: crypto.createHash('sha256').update(body).digest('hex'),
    body: body.length <= SHORT ? body.toString('latin1') : null,
  });
}

function failed(n) {
  return (error) => report('failed', { n, message: String((error && error.code) || error) });
}

function request(command) {
  const made = command.token;
  const token = typeof made === 'string' ? made : https.createRelayToken(made.uri, made.rule, made.key, made.seconds);
  const uri = new URL(https.createRelayHttpsUri(command.host, command.path, token));
  const asked = https.request({
    hostname: uri.hostname,
    port: uri.port,
    path: uri.pathname + uri.search + (command.query || ''),
    method: command.method,
    headers: command.headers || {},
  }, (response) => {
    const pieces = [];
    const headers = [];
    for (let i = 0; i < response.rawHeaders.length; i += 2) headers.push(response.rawHeaders.slice(i, i + 2));
    response.on('data', (piece) => pieces.push(piece));
    response.on('aborted', () => failed(command.n)(new Error('aborted')));
    response.on('end', () => tell(command.n, response.statusCode, response.statusMessage, headers, Buffer.concat(pieces)));
  });
  asked.on('error', failed(command.n));
  const body = make('binary', command.size || 0, command.seed || '');
  if (!command.pieces) {
    if (body.length) asked.setHeader('Content-Length', body.length);
    asked.end(body);
    return;
  }
  let at = 0;
  for (const size of command.pieces) {
    asked.write(body.subarray(at, at + size));
    at += size;
  }
  asked.end(body.subarray(at));
}

async function fetched(command) {
  const init = { method: command.method, headers: command.headers || [], redirect: 'manual' };
  if (command.size) init.body = make('binary', command.size, command.seed);
  const response = await fetch(command.url, init);
  const body = Buffer.from(await response.arrayBuffer());
  tell(command.n, response.status, response.statusText, [...response.headers], body);
}

obey({
  request,
  fetch: (command) => fetched(command).catch(failed(command.n)),
  uri: (command) => report('uri', { uri: https.createRelayHttpsUri(command.host, command.path, command.token, command.id) }),
});
