// Writes src/schema.ts from the schema that the server answers by; --check only compares.
import { readFileSync, writeFileSync } from "node:fs";

const SCHEMA = new URL("../src/mirada/serve/schema/explorer-1.json", import.meta.url);
const OUT = new URL("src/schema.ts", import.meta.url);
const defs = JSON.parse(readFileSync(SCHEMA, "utf8")).$defs;
const nameOf = (key) => key.split("_").map((w) => w[0].toUpperCase() + w.slice(1)).join("");

function type(s) {
  if (s.$ref) return s.$ref.startsWith("#/$defs/error/") ? "Fault" : nameOf(s.$ref.split("/").pop());
  if ("const" in s) return JSON.stringify(s.const);
  if (s.enum) return s.enum.map((v) => JSON.stringify(v)).join(" | ");
  if (s.anyOf) return s.anyOf.map(type).join(" | ");
  if (Array.isArray(s.type)) return s.type.map((t) => type({ ...s, type: t })).join(" | ");
  if (s.type === "array") {
    const inner = s.items ? type(s.items) : "unknown";
    if (s.minItems && s.minItems === s.maxItems) {
      return `[${Array(s.minItems).fill(inner).join(", ")}]`;
    }
    return /[| ]/.test(inner) ? `(${inner})[]` : `${inner}[]`;
  }
  if (s.type === "object") return object(s);
  return { integer: "number", number: "number", string: "string", boolean: "boolean", null: "null" }[s.type]
    ?? "unknown";
}

function object(s) {
  if (!s.properties) {
    const rest = s.additionalProperties;
    return `Record<string, ${rest && rest !== true ? type(rest) : "unknown"}>`;
  }
  const needed = new Set(s.required ?? []);
  const rows = Object.entries(s.properties)
    .map(([key, v]) => `${/^\w+$/.test(key) ? key : JSON.stringify(key)}${needed.has(key) ? "" : "?"}: ${type(v)}`);
  return `{ ${rows.join("; ")} }`;
}

const lines = ["// Made by types.mjs from explorer-1.json: change that file, not this one.", ""];
for (const [key, s] of Object.entries(defs)) {
  if (key === "error") lines.push(`export type Fault = ${type(s.properties.error)};`);
  else lines.push(`export type ${nameOf(key)} = ${type(s)};`);
}
const text = lines.join("\n") + "\n";
if (process.argv.includes("--check")) {
  if (readFileSync(OUT, "utf8") !== text) {
    console.error("src/schema.ts is older than the schema: run node types.mjs");
    process.exit(1);
  }
} else writeFileSync(OUT, text);
