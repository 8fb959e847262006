// A listener made with the unmodified hyco-https that keeps the contract of tests/http_echo.py.
//
// Argument: one JSON object
//   url         listen URL, ws or wss://HOST:PORT/$hc/PATH?sb-hc-action=listen
//   token       a token, or {uri, rule, key, seconds}: a function that makes a new one each time hyco-https asks
//   renewEvery  milliseconds between renewals instead of the hour that hyco-https has fixed (needs a token function)
// Commands: open (a gate), renew (token), stop, count (of requests so far), sockets
// Events: listening, lost (the control channel), error, stopped, token (asked for), count, sockets, connection (a WebSocket)
'use strict';

const crypto = require('crypto');
const { obey, make, report, sockets } = require('./content');

const options = JSON.parse(process.argv[2]);

if (options.renewEvery) {
  // Only the clock changes: hyco-https asks for one hour, and the test can't wait that long.
  const setIntervalOfNode = global.setInterval;
  global.setInterval = (callback, milliseconds, ...rest) =>
    setIntervalOfNode(callback, milliseconds === 3600 * 1000 ? options.renewEvery : milliseconds, ...rest);
}

const https = require('hyco-https');

// --- gates, see tests/http_echo.py ---

const PATIENCE = 30000;
const gates = new Map();
const come = new Map();

function gate(name) {
  if (!gates.has(name)) {
    const made = {};
    made.opened = new Promise((resolve) => { made.open = resolve; });
    gates.set(name, made);
  }
  return gates.get(name);
}

function wait(name) {
  let timer;
  const late = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`nobody opened the gate ${name}`)), PATIENCE);
  });
  return Promise.race([gate(name).opened, late]).finally(() => clearTimeout(timer));
}

function meet(name, number) {
  come.set(name, (come.get(name) || 0) + 1);
  if (come.get(name) === number) gate(name).open();
  return wait(name);
}

// --- one request ---

function read(request) {
  return new Promise((resolve) => {
    const hash = crypto.createHash('sha256');
    let size = 0;
    let pieces = 0;
    request.on('data', (data) => {
      hash.update(data);
      size += data.length;
      pieces += 1;
    });
    request.on('end', () => resolve({ size, sha256: hash.digest('hex'), pieces }));
  });
}

async function take(steps, write, response) {
  for (const [verb, ...rest] of steps) {
    if (verb === 'bytes') write(make('binary', rest[0], rest[1]));
    else if (verb === 'text') write(Buffer.from(rest[0]));
    else if (verb === 'wait') await wait(rest[0]);
    else if (verb === 'open') gate(rest[0]).open();
    else if (verb === 'meet') await meet(rest[0], rest[1]);
    else if (verb === 'empty') response.end(Buffer.alloc(0)); // hyco-https sends nothing at all for this
    else if (verb === 'abort') {
      await sent(response.connection);
      response.connection.terminate();
      return false;
    } else throw new Error(`no such step: ${verb}`);
  }
  return true;
}

/** Waits until a rendezvous is open and has sent what it was given. */
async function sent(socket) {
  if (socket.readyState === 0) await new Promise((resolve) => socket.once('open', resolve));
  while (socket.bufferedAmount > 0) await new Promise((resolve) => setImmediate(resolve));
}

async function answer(request, response) {
  const plan = JSON.parse(request.headers['x-plan'] || '{}');
  if (plan.left) {
    // hyco-https tells the end of a rendezvous; of a request on the control channel nobody can tell.
    const watch = (socket) => {
      if (socket !== server.controlChannel) socket.on('close', () => gate(plan.left).open());
    };
    if (response.socket) watch(response.socket);
    else response.once('socket', watch);
  }
  const told = { method: request.method, target: request.url, headers: Object.entries(request.headers) };
  if ((plan.read || 'whole') === 'whole') Object.assign(told, await read(request));
  await take(plan.before || [], () => {}, response);
  const headers = {};
  for (const [name, value] of plan.headers || []) {
    if (headers[name] === undefined) headers[name] = value;
    else headers[name] = [].concat(headers[name], value);
  }
  const description = JSON.stringify(told);
  if (plan.tell) headers['X-Told'] = description.replace(/[\u0080-\uffff]/g, escaped);
  if (!plan.body) headers['Content-Type'] = 'application/json';
  const status = plan.status || 200;
  if (plan.reason) response.writeHead(status, plan.reason, headers);
  else response.writeHead(status, headers);
  const steps = plan.body || [['text', description]];
  if (plan.length && steps.length) {
    // As one piece: what has 64 KiB then still goes over the control channel.
    const pieces = [];
    await take(steps, (data) => pieces.push(data), response);
    response.end(Buffer.concat(pieces));
  } else if (await take(steps, (data) => response.write(data), response)) {
    response.end();
  }
}

/** A header of an answer is ASCII or nothing. */
function escaped(character) {
  return '\\u' + character.charCodeAt(0).toString(16).padStart(4, '0');
}

// --- the listener ---

let server = null;
let count = 0;

function token() {
  const made = options.token;
  if (typeof made === 'string') return made;
  return () => {
    report('token', {});
    return https.createRelayToken(made.uri, made.rule, made.key, made.seconds);
  };
}

server = https.createRelayedServer({ server: options.url, token: token() }, (request, response) => {
  count += 1;
  answer(request, response).catch((error) => report('error', { message: String(error.stack) }));
});
server.on('listening', () => {
  report('listening', {});
  server.controlChannel.addEventListener('close', (event) => report('lost', { code: event.code, reason: event.reason }));
});
server.on('connection', () => report('connection', {}));
server.on('error', (error) => report('error', { message: String((error && error.message) || error) }));
server.on('close', () => report('stopped', {}));

obey({
  open: (command) => gate(command.gate).open(),
  renew: (command) => server.controlChannel.send(JSON.stringify({ renewToken: { token: command.token } })),
  stop: () => server.close(),
  count: () => report('count', { count }),
  sockets: () => report('sockets', { count: sockets() }),
});
server.listen();
