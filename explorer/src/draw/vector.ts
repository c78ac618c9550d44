// A pen that writes SVG: what draws on a canvas draws with it the same picture, in lines that scale.

const XML: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const safe = (s: string): string => s.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "").replace(/[&<>"]/g, (c) => XML[c]);
const short = (x: number): string => String(Math.round(x * 100) / 100);

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true })!;
const paints = new Map<string, [string, number]>();

/** Any CSS colour as #rrggbb and an opacity: drawing programs know no color-mix(). */
function paint(colour: string): [string, number] {
  let found = paints.get(colour);
  if (!found) {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = colour;
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = probe.getImageData(0, 0, 1, 1).data;
    paints.set(colour, found = ["#" + [r, g, b].map((x) => x.toString(16).padStart(2, "0")).join(""), a / 255]);
  }
  return found;
}

interface State { turn: string; globalAlpha: number; fillStyle: string; strokeStyle: string; lineWidth: number; font: string; textAlign: string; textBaseline: string }

/** The part of a canvas's context that the page's pictures use. */
export class Pen implements State {
  turn = ""; globalAlpha = 1; fillStyle = "#000"; strokeStyle = "#000"; lineWidth = 1; lineCap = "butt"; font = "13px sans-serif";
  textAlign = "left"; textBaseline = "alphabetic"; imageSmoothingEnabled = false;
  private out: string[] = [];
  private path: string[] = [];
  private states: State[] = [];

  save(): void {
    const { turn, globalAlpha, fillStyle, strokeStyle, lineWidth, font, textAlign, textBaseline } = this;
    this.states.push({ turn, globalAlpha, fillStyle, strokeStyle, lineWidth, font, textAlign, textBaseline });
  }
  restore(): void { Object.assign(this, this.states.pop()); }
  translate(x: number, y: number): void { this.turn += ` translate(${short(x)} ${short(y)})`; }
  rotate(angle: number): void { this.turn += ` rotate(${short(angle * 180 / Math.PI)})`; }
  beginPath(): void { this.path = []; }
  moveTo(x: number, y: number): void { this.path.push(`M${short(x)} ${short(y)}`); }
  lineTo(x: number, y: number): void { this.path.push(`${this.path.length ? "L" : "M"}${short(x)} ${short(y)}`); }
  bezierCurveTo(...at: number[]): void { this.path.push(`C${at.map(short).join(" ")}`); }
  arc(x: number, y: number, r: number): void { // whole circles are all that is drawn
    this.path.push(`M${short(x - r)} ${short(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`);
  }
  stroke(): void { this.put(`<path d="${this.path.join("")}" fill="none"${this.line()}/>`); }
  fill(): void { this.put(`<path d="${this.path.join("")}"${this.ink()}/>`); }
  fillRect(x: number, y: number, w: number, h: number): void { this.put(`<rect${this.box(x, y, w, h)}${this.ink()}/>`); }
  strokeRect(x: number, y: number, w: number, h: number): void { this.put(`<rect${this.box(x, y, w, h)} fill="none"${this.line()}/>`); }
  clearRect(x: number, y: number, w: number, h: number): void {
    this.put(`<rect${this.box(x, y, w, h)} fill="${paint(getComputedStyle(document.body).backgroundColor)[0]}"/>`);
  }
  fillText(text: string, x: number, y: number): void {
    const anchor = { right: "end", center: "middle" }[this.textAlign], style = safe(this.font);
    this.put(`<text x="${short(x)}" y="${short(y)}" style="font:${style}"${anchor ? ` text-anchor="${anchor}"` : ""}${this.textBaseline === "middle" ? ' dominant-baseline="central"' : ""}${this.ink()} xml:space="preserve">${safe(text)}</text>`);
  }
  measureText(text: string): { width: number } {
    probe.font = this.font;
    return probe.measureText(text);
  }
  drawImage(image: HTMLCanvasElement, x: number, y: number, w: number, h: number): void {
    this.put(`<image${this.box(x, y, w, h)} preserveAspectRatio="none" style="image-rendering:${this.imageSmoothingEnabled ? "auto" : "pixelated"}" href="${image.toDataURL()}"/>`);
  }

  /** Draws `body` so that nothing of it leaves a box. */
  within(x: number, y: number, w: number, h: number, body: () => void): void {
    const before = this.out, turn = this.turn;
    this.out = [];
    this.turn = "";
    body();
    const inside = this.out.join("");
    this.out = before;
    this.turn = turn;
    if (inside) this.put(`<svg${this.box(x, y, w, h)} viewBox="${[x, y, w, h].map(short).join(" ")}" overflow="hidden">${inside}</svg>`);
  }

  /** The whole file. */
  text(width: number, height: number, title: string): string {
    return `<svg xmlns="http://www.w3.org/2000/svg"${this.box(0, 0, width, height)} viewBox="0 0 ${short(width)} ${short(height)}"><title>${safe(title)}</title>${this.out.join("\n")}</svg>\n`;
  }

  private put(element: string): void { this.out.push(this.turn ? `<g transform="${this.turn.trim()}">${element}</g>` : element); }
  private box(x: number, y: number, w: number, h: number): string { return ` x="${short(x)}" y="${short(y)}" width="${short(Math.max(0, w))}" height="${short(Math.max(0, h))}"`; }
  private ink(): string {
    const [colour, alpha] = paint(this.fillStyle);
    return ` fill="${colour}"${this.faint("fill", alpha)}`;
  }
  private line(): string {
    const [colour, alpha] = paint(this.strokeStyle);
    return ` stroke="${colour}" stroke-width="${short(this.lineWidth)}"${this.lineCap === "round" ? ' stroke-linecap="round"' : ""}${this.faint("stroke", alpha)}`;
  }
  private faint(what: string, alpha: number): string {
    const opacity = alpha * this.globalAlpha;
    return opacity < 1 ? ` ${what}-opacity="${short(opacity)}"` : "";
  }
}
