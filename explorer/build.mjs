// Builds the page into src/mirada/serve/static: hashed names, no source maps, same bytes each time.
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
mkdirSync(OUT, { recursive: true });
for (const old of readdirSync(OUT)) rmSync(new URL(old, OUT));

const names = {};
let packed = 0;
for (const file of made.outputFiles) {
  const kind = file.path.endsWith(".css") ? "css" : "js";
  const hash = createHash("sha256").update(file.contents).digest("hex").slice(0, 10);
  names[kind] = `explorer-${hash}.${kind}`;
  writeFileSync(new URL(names[kind], OUT), file.contents);
  packed += gzipSync(file.contents, { level: 9 }).length;
}
const page = readFileSync(new URL("src/index.html", import.meta.url), "utf8")
  .replace("{js}", names.js).replace("{css}", names.css);
writeFileSync(new URL("index.html", OUT), page);
writeFileSync(new URL("icon.svg", OUT), readFileSync(new URL("src/icon.svg", import.meta.url)));
console.log(`${(packed / 1024).toFixed(1)} KB of scripts and styles, gzip (at most ${LIMIT / 1024})`);
if (packed > LIMIT) process.exit(1);
