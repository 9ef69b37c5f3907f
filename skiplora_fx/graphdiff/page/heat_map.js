"use strict";
// Sites over steps as a picture: coloured by M on a logarithmic scale, hatched where the gate was shut.

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const [from, to] = [VIRIDIS[low], VIRIDIS[low + 1]].map((colour) =>
    [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16)),
  );
  return from.map((part, place) => Math.round(part + (to[place] - part) * (at - low)));
}

// One pixel for each column and site.
function heatImages(timeline) {
  const [low, high] = timeline.range.map(Math.log);
  const colour = (ratio) => (ratio === null ? [0, 0, 0, 0] : [...viridis((Math.log(ratio) - low) / (high - low)), 255]);
  const ratios = pixels(timeline, (site, column) => colour(timeline.ratio[site][column]));
  const shut = pixels(timeline, (site, column) => [255, 255, 255, timeline.shut[site][column] === "1" ? 255 : 0]);
  return { ratios, shut };
}

function pixels(timeline, colour) {
  const [width, height] = [timeline.edges.length - 1, timeline.sites.length];
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  for (let site = 0; site < height; site += 1) {
    for (let column = 0; column < width; column += 1) {
      image.data.set(colour(site, column), 4 * (site * width + column));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A hook of uPlot's that draws the images where their columns and rows are.
function heatDrawn(timeline) {
  const { ratios, shut } = heatImages(timeline);
  return (plot) => {
    const { ctx, bbox } = plot;
    const edge = (value, scale) => plot.valToPos(value, scale, true);
    const [left, right] = [edge(timeline.edges[0], "x"), edge(timeline.edges[timeline.edges.length - 1], "x")];
    const [top, bottom] = [edge(-0.5, "y"), edge(timeline.sites.length - 0.5, "y")];
    const place = [left, top, right - left, bottom - top];
    const over = make("canvas", { width: ctx.canvas.width, height: ctx.canvas.height }).getContext("2d");
    for (const context of [ctx, over]) {
      context.imageSmoothingEnabled = false;
    }
    over.drawImage(shut, ...place);
    over.globalCompositeOperation = "source-in";
    over.fillStyle = hatch(over);
    over.fillRect(0, 0, ctx.canvas.width, ctx.canvas.height);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = cssColour("--no-ratio");
    ctx.fillRect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.drawImage(ratios, ...place);
    ctx.drawImage(over.canvas, 0, 0);
    ctx.restore();
  };
}

function hatch(context) {
  const size = Math.round(6 * devicePixelRatio);
  const tile = make("canvas", { width: size, height: size });
  const line = tile.getContext("2d");
  line.fillStyle = "rgb(0 0 0 / 45%)";
  line.fillRect(0, 0, size, size);
  line.strokeStyle = "rgb(255 255 255 / 85%)";
  line.lineWidth = devicePixelRatio;
  line.beginPath();
  for (const shift of [-size, 0, size]) {
    line.moveTo(shift, size);
    line.lineTo(shift + size, 0);
  }
  line.stroke();
  return context.createPattern(tile, "repeat");
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
