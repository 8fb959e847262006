// A listener made with the unmodified hyco-ws: answers each message with the same message, or does what it is told.
//
// Argument: one JSON object
//   url         listen URL, wss://HOST:PORT/$hc/PATH?sb-hc-action=listen
//   token       a token, or {uri, rule, key, seconds}: a function that makes a new one each time hyco-ws asks
//   echo        answer by itself (default true)
//   renewEvery  milliseconds between renewals instead of the hour that hyco-ws has fixed (needs a token function)
//   keepTrying  false: close the server at its first error, because hyco-ws retries without a pause for ever
// Commands: send, close, terminate (a connection n), renew (token), stop, restart, sockets
// Events: listening, lost (the control channel), error, stopped, token (asked for), sockets; and of a connection n:
//   connection, opened, message, sent, failed, closed
'use strict';

const { obey, describe, report, send, sockets } = require('./content');

const options = JSON.parse(process.argv[2]);

if (options.renewEvery) {
  // Only the clock changes: hyco-ws asks for one hour, and the test can't wait that long.
  const setIntervalOfNode = global.setInterval;
  global.setInterval = (callback, milliseconds, ...rest) =>
    setIntervalOfNode(callback, milliseconds === 3600 * 1000 ? options.renewEvery : milliseconds, ...rest);
}

const WebSocket = require('hyco-ws');

const connections = new Map();
let server = null;
let accepted = 0;

function token() {
  const made = options.token;
  if (typeof made === 'string') return made;
  return () => {
    report('token', {});
    return WebSocket.createRelayToken(made.uri, made.rule, made.key, made.seconds);
  };
}

function serve(connection) {
  const n = ++accepted;
  connections.set(n, connection);
  report('connection', { n });
  connection.on('open', () => report('opened', { n, protocol: connection.protocol || null }));
  connection.on('message', (data) => {
    report('message', Object.assign({ n }, describe(data)));
    if (options.echo !== false) connection.send(data);
  });
  connection.on('error', (error) => report('failed', { n, message: String((error && error.message) || error) }));
  connection.on('close', (code, reason) => {
    connections.delete(n);
    report('closed', { n, code, reason: String(reason) });
  });
}

function start() {
  const started = WebSocket.createRelayedServer({ server: options.url, token: token() }, serve);
  started.on('listening', () => {
    report('listening', {});
    started.controlChannel.on('close', (code, reason) => report('lost', { code, reason: String(reason) }));
  });
  started.on('error', (error) => {
    if (options.keepTrying === false) started.close();
    report('error', { message: String((error && error.message) || error) });
  });
  started.on('close', () => report('stopped', {}));
  server = started;
}

obey({
  send: (command) => send(connections.get(command.n), command),
  close: (command) => connections.get(command.n).close(command.code, command.reason),
  terminate: (command) => connections.get(command.n).terminate(),
  renew: (command) => server.controlChannel.send(JSON.stringify({ renewToken: { token: command.token } })),
  stop: () => server.close(),
  restart: () => {
    server.once('close', start);
    server.close();
  },
  sockets: () => report('sockets', { count: sockets() }),
});
start();
