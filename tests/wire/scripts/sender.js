// Senders made with the unmodified hyco-ws, any number in one process.
//
// Commands:
//   open       n, url, token (header), protocols, headers: relayedConnect, or its own WebSocket when protocols or headers
//              are given, which relayedConnect cannot pass on
//   send       n, kind, size, seed, count, fragments
//   close      n, code, reason
//   terminate  n: the connection is cut without a Close frame
//   token      uri, rule, key, seconds: what createRelayToken makes
'use strict';

const { obey, describe, report, send } = require('./content');
const WebSocket = require('hyco-ws');

const connections = new Map();

function open(command) {
  const n = command.n;
  let connection;
  if (command.protocols || command.headers) {
    const headers = Object.assign({}, command.headers);
    if (command.token) headers.ServiceBusAuthorization = command.token;
    connection = new WebSocket(command.url, command.protocols || null, { headers });
  } else {
    connection = WebSocket.relayedConnect(command.url, command.token);
  }
  connections.set(n, connection);
  connection.on('open', () => report('opened', { n, protocol: connection.protocol || null }));
  connection.on('message', (data) => report('message', Object.assign({ n }, describe(data))));
  connection.on('unexpected-response', (request, response) => {
    report('rejected', { n, status: response.statusCode, phrase: response.statusMessage });
    request.abort();
  });
  connection.on('error', (error) => report('failed', { n, message: String((error && error.message) || error) }));
  connection.on('close', (code, reason) => {
    connections.delete(n);
    report('closed', { n, code, reason: String(reason) });
  });
}

obey({
  open,
  send: (command) => send(connections.get(command.n), command),
  close: (command) => connections.get(command.n).close(command.code, command.reason),
  terminate: (command) => connections.get(command.n).terminate(),
  token: (command) => report('token', {
    token: WebSocket.createRelayToken(command.uri, command.rule, command.key, command.seconds),
  }),
});
