// Packages of Node.js that frame messages: each message is answered as answers.py says.
//
// node node_peer.cjs PROTOCOL [PORT]

"use strict";

const net = require("net");
const { crc32 } = require("zlib");

function answer(message) {
  // A copy, for what is read may be a part of a chunk that is read from still.
  return Buffer.concat([Buffer.from(message).reverse(), checksum(message)]);
}

function checksum(message) {
  return Buffer.from(crc32(message).toString(16).padStart(8, "0"));
}

const protocols = {
  "length-prefixed-stream"(socket) {
    const { encode, decode } = require("length-prefixed-stream");
    const encoder = encode();
    encoder.pipe(socket);
    socket
      .pipe(decode({ allowEmpty: true }))
      .on("data", (message) => encoder.write(answer(message)))
      .on("end", () => encoder.end());
  },

  async "it-length-prefixed"(socket) {
    const { encode, decode } = require("it-length-prefixed");
    async function* answers() {
      for await (const message of decode(socket)) yield answer(message.slice());
    }
    for await (const piece of encode(answers())) socket.write(piece);
    socket.end();
  },

  "frame-stream"(socket) {
    const { encode, decode } = require("frame-stream");
    const encoder = encode({ setLength: (field, length) => field.writeUInt32LE(length) });
    encoder.pipe(socket);
    socket
      .pipe(decode({ getLength: (field) => field.readUInt32LE() }))
      .on("data", (message) => encoder.write(answer(message)))
      .on("end", () => encoder.end());
  },

  async netstring(socket) {
    const { makeNetstringReader, makeNetstringWriter } = require("@endo/netstring");
    const writer = makeNetstringWriter({ next: async (frame) => socket.write(frame) });
    for await (const message of makeNetstringReader(socket)) await writer.next(answer(message));
    socket.end();
  },

  slip(socket) {
    const slip = require("slip");
    const decoder = new slip.Decoder({
      onMessage: (message) => socket.write(slip.encode(answer(message))),
      onError: (_, error) => socket.destroy(new Error(error)),
    });
    socket.on("data", (chunk) => decoder.decode(chunk));
  },

  "vscode-jsonrpc"(socket) {
    const rpc = require("vscode-jsonrpc/node");
    const connection = rpc.createMessageConnection(
      new rpc.StreamMessageReader(socket),
      new rpc.StreamMessageWriter(socket),
    );
    connection.onRequest(
      "test/answer",
      ({ text }) => Array.from(text).reverse().join("") + checksum(text),
    );
    connection.listen();
  },
};

const [name, port] = process.argv.slice(2);
if (port === undefined) {
  const server = net.createServer((socket) => {
    server.close();
    protocols[name](socket);
  });
  server.listen(0, "127.0.0.1", () => console.log(`listening on port ${server.address().port}`));
} else {
  const socket = net.connect(Number(port), "127.0.0.1", () => protocols[name](socket));
}
