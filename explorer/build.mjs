// Builds the page into src/mirada/serve/static: hashed names, no source maps, same bytes each time;
// with --check, only says whether what lies there is that.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const OUT = new URL("../src/mirada/serve/static/", import.meta.url);
const LIMIT = 120 * 1024; // of scripts and styles, gzip

const made = await build({
  entryPoints: ["src/main.tsx", "src/style.css"],
  bundle: true, minify: true, write: false, outdir: "out", format: "esm", target: "es2022",
  external: ["icon.svg"], jsx: "automatic", jsxImportSource: "preact", charset: "utf8", legalComments: "none",
  absWorkingDir: new URL(".", import.meta.url).pathname,
});
const files = new Map();
const names = {};
let packed = 0;
for (const file of made.outputFiles) {
  const kind = file.path.endsWith(".css") ? "css" : "js";
  const hash = createHash("sha256").update(file.contents).digest("hex").slice(0, 10);
  names[kind] = `explorer-${hash}.${kind}`;
  files.set(names[kind], Buffer.from(file.contents));
  packed += gzipSync(file.contents, { level: 9 }).length;
}
const page = readFileSync(new URL("src/index.html", import.meta.url), "utf8")
  .replace("{js}", names.js).replace("{css}", names.css);
files.set("index.html", Buffer.from(page));
files.set("icon.svg", readFileSync(new URL("src/icon.svg", import.meta.url)));

if (process.argv.includes("--check")) {
  const shipped = readdirSync(OUT).sort(), wanted = [...files.keys()].sort();
  const same = shipped.join() === wanted.join()
    && wanted.every((name) => readFileSync(new URL(name, OUT)).equals(files.get(name)));
  if (!same) {
    console.error(`the shipped page is not what its source builds to: run npm run build\n  shipped ${shipped}\n  built   ${wanted}`);
    process.exit(1);
  }
} else {
  mkdirSync(OUT, { recursive: true });
  for (const old of readdirSync(OUT)) rmSync(new URL(old, OUT));
  for (const [name, content] of files) writeFileSync(new URL(name, OUT), content);
}
console.log(`${(packed / 1024).toFixed(1)} KB of scripts and styles, gzip (at most ${LIMIT / 1024})`);
if (packed > LIMIT) process.exit(1);
