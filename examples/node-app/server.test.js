'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');

test('counts its visitors', async () => {
  process.env.MC_DATA = fs.mkdtempSync(path.join(os.tmpdir(), 'node-app-'));
  const { server } = require('./server.js');
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${server.address().port}/`;
  for (const expected of [1, 2]) {
    assert.strictEqual((await (await fetch(url)).json()).visits, expected);
  }
  server.closeAllConnections();
  server.close();
  fs.rmSync(process.env.MC_DATA, { recursive: true });
});
