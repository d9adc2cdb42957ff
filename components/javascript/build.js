// Makes a component from JavaScript: node build.js WIT WORLD APP.js OUT.wasm
//
// It runs `jco componentize --backend quickjs`, with a step before and a step after. To make its snapshot, jco 1.35
// gives the code stand-ins for the imports that it does not know, among them wasi:http. The streams of wasi:http are
// those of wasi:io, which jco does know, and a stand-in does not fit the real thing. So while jco works, both packages
// have a version that it does not know. Afterwards the component gets their own version back. A component without the
// API role needs none of this.
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const VERSION = "0.2.9"; // In the WIT. UNKNOWN is as long, since a component stores each name with its length.
const UNKNOWN = "0.0.9";

const [wit, world, app, out] = process.argv.slice(2);
if (out === undefined) {
  console.error("usage: node build.js WIT WORLD APP.js OUT.wasm");
  process.exit(2);
}

const scratch = mkdtempSync(join(tmpdir(), "edge-relay-"));
try {
  cpSync(wit, scratch, { recursive: true });
  for (const file of readdirSync(scratch, { recursive: true }).filter((name) => name.endsWith(".wit"))) {
    change(join(scratch, file), VERSION, UNKNOWN);
  }
  const jco = resolve(import.meta.dirname, "node_modules/@bytecodealliance/jco/dist/jco.js");
  const made = join(scratch, "made.wasm");
  // For a host without the component model's own async, which WASI 0.2 does not have.
  const options = ["--backend", "quickjs", "--backend-qjs-disable-async", "--wit", scratch, "--world-name", world];
  execFileSync(process.execPath, [jco, "componentize", resolve(app), ...options, "--out", made], { stdio: ["ignore", "ignore", "inherit"] });
  change(made, UNKNOWN, VERSION);
  cpSync(made, out);
} catch (error) {
  console.error(`${app} is not built: ${error.message}`);
  process.exitCode = 1;
} finally {
  rmSync(scratch, { recursive: true });
}

// Changes the version of wasi:io and wasi:http wherever the file names it. All other bytes stay as they are.
function change(file, from, to) {
  const names = new RegExp(`(wasi:(?:io|http)(?:/[a-z-]+)?@)${from.replaceAll(".", "\\.")}(?![0-9])`, "g");
  writeFileSync(file, readFileSync(file, "latin1").replace(names, `$1${to}`), "latin1");
}
