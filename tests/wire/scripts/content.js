// What the scripts share: commands in and events out as JSON lines, and message content made from a seed, so that
// a test compares what arrived by its hash instead of carrying megabytes over a pipe.
'use strict';

const crypto = require('crypto');
const readline = require('readline');

/** Prints one event; the test reads it as one line. */
exports.report = function report(event, fields) {
  process.stdout.write(JSON.stringify(Object.assign({ event }, fields)) + '\n');
};

/**
 * The content of a message: `size` bytes of SHAKE-256 over the seed. As text, each byte is the character with that
 * number, so half of the characters take two bytes in UTF-8 and a frame border may fall inside one.
 */
exports.make = function make(kind, size, seed) {
  const bytes = size === 0
    ? Buffer.alloc(0)
    : crypto.createHash('shake256', { outputLength: size }).update(seed).digest();
  return kind === 'text' ? bytes.toString('latin1') : bytes;
};

/** Kind, size in bytes on the wire, and SHA-256 of a message. */
exports.describe = function describe(data) {
  const bytes = Buffer.isBuffer(data) ? data : Buffer.from(data, 'utf8');
  return {
    kind: Buffer.isBuffer(data) ? 'binary' : 'text',
    size: bytes.length,
    sha256: crypto.createHash('sha256').update(bytes).digest('hex'),
  };
};

/**
 * Sends `count` messages and reports each. `fragments` over 1 uses the client's own stream function, which cuts a
 * message into that many frames.
 */
exports.send = function send(socket, command) {
  const count = command.count || 1;
  for (let i = 0; i < count; i += 1) {
    const seed = count === 1 ? command.seed : `${command.seed}-${i}`;
    const data = exports.make(command.kind, command.size, seed);
    exports.report('sent', Object.assign({ n: command.n }, exports.describe(data)));
    if (command.fragments > 1) {
      const step = Math.ceil(data.length / command.fragments);
      let at = 0;
      socket.stream({ binary: command.kind === 'binary' }, (error, piece) => {
        if (error) throw error;
        const from = at;
        at += step;
        piece(data.slice(from, at), at >= data.length);
      });
    } else {
      socket.send(data);
    }
  }
};

/** Runs the function named by each command's `do`; an end of the input ends the process. */
exports.obey = function obey(commands) {
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    const command = JSON.parse(line);
    try {
      commands[command.do](command);
    } catch (error) {
      exports.report('refused', { do: command.do, n: command.n, message: String(error && error.message) });
    }
  });
  lines.on('close', () => process.exit(0));
};

/**
 * TCP connections that this process has open or is opening.
 * `process.getActiveResourcesInfo` names the handles that keep the process running.
 */
exports.sockets = function sockets() {
  return process.getActiveResourcesInfo().filter((name) => /^(TCP|TLS|GetAddrInfo)/.test(name)).length;
};
