'use strict';
// Answers every GET / with the number of visits so far and how long the server has been up.
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const ms = require('ms');

const file = path.join(process.env.MC_DATA, 'visits.json');
const started = Date.now();

function visits() {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8')).visits;
  } catch (error) {
    if (error.code === 'ENOENT') return 0;
    throw error;
  }
}

function count() {
  const next = visits() + 1;
  // Written beside and renamed: a reader, or a crash, never sees half a file.
  fs.writeFileSync(`${file}.new`, JSON.stringify({ visits: next }));
  fs.renameSync(`${file}.new`, file);
  return next;
}

const server = http.createServer((request, response) => {
  const health = request.url === '/healthz';
  const body = health
    ? { ok: true, commit: process.env.MC_COMMIT }
    : { visits: count(), up: ms(Date.now() - started, { long: true }) };
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(`${JSON.stringify(body)}\n`);
});

if (require.main === module) server.listen(Number(process.env.PORT || 3000), '127.0.0.1');

module.exports = { server };
