// The picture, with what is laid over it. Only the newest is decoded, and what is drawn is handed on together
// with its answer, so that label and picture are of the same frame.

const NICE = [5, 2, 1];

export class Picture {
  // `drawn(head)` is called with each picture that is drawn, `painted(number)` once the browser has painted it.
  constructor(canvas, scale, { drawn, painted }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.scale = scale;
    this.drawn = drawn;
    this.painted = painted;
    this.waiting = null; // newer than the one that is being decoded
    this.isDecoding = false;
    this.forgotten = 0; // how often all that had come and was not shown was let go
    this.shown = null; // {head, bitmap}
    this.isReporting = false;
    this.overlay = null; // (context, head) => void
    new ResizeObserver(() => this.placeScale()).observe(canvas);
  }

  take(head, blob) {
    this.waiting = { head, blob };
    if (!this.isDecoding) this.decode();
  }

  // Of what has come nothing more is shown: neither what waits nor what is being decoded.
  forget() {
    this.waiting = null;
    this.forgotten += 1;
  }

  // Nothing is shown any more.
  clear() {
    this.forget();
    this.shown?.bitmap.close();
    this.shown = null;
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.placeScale();
  }

  async decode() {
    this.isDecoding = true;
    while (this.waiting) {
      const { head, blob } = this.waiting;
      const { forgotten } = this;
      this.waiting = null;
      try {
        const bitmap = await createImageBitmap(blob);
        if (forgotten !== this.forgotten) {
          bitmap.close();
          continue;
        }
        this.shown?.bitmap.close();
        this.shown = { head, bitmap };
        this.draw();
        this.drawn(head);
        this.report();
      } catch (error) {
        console.error("a picture could not be decoded", error);
      }
    }
    this.isDecoding = false;
  }

  draw() {
    if (!this.shown) return;
    const { head, bitmap } = this.shown;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
      this.placeScale();
    }
    this.context.drawImage(bitmap, 0, 0);
    this.overlay?.(this.context, head);
    if (this.scaled !== head.result.mpp) this.placeScale();
  }

  // What is drawn now is painted after the next animation frame's callbacks: a message from there comes later.
  report() {
    if (this.isReporting) return;
    this.isReporting = true;
    requestAnimationFrame(() => {
      const { shown } = this;
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        this.isReporting = false;
        if (shown && this.shown) this.painted(shown.head.result.number); // else it was cleared meanwhile
        if (this.shown && this.shown !== shown) this.report();
      };
      port2.postMessage(null);
    });
  }

  // A bar of a round number of microns, at most a quarter of the picture, in its lower left corner.
  placeScale() {
    const mpp = this.shown?.head.result.mpp;
    this.scaled = mpp;
    this.scale.hidden = !mpp;
    if (!mpp) return;
    const { clientWidth, clientHeight, width, height } = this.canvas;
    const zoom = Math.min(clientWidth / width, clientHeight / height);
    const shownWidth = width * zoom;
    const microns = (this.shown.head.width * mpp) / 4;
    const power = 10 ** Math.floor(Math.log10(microns));
    const length = power * NICE.find((times) => times * power <= microns);
    const [bar, words] = this.scale.children;
    bar.style.width = `${(length / (this.shown.head.width * mpp)) * shownWidth}px`;
    words.textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
    const left = (clientWidth - shownWidth) / 2 + 12;
    const top = (clientHeight + height * zoom) / 2 - 12 - this.scale.offsetHeight;
    this.scale.style.transform = `translate(${left}px, ${top}px)`;
  }
}
