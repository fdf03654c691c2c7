// One event stream for all waiting pages of a browser, whatever their number. Over HTTP/1.1 a
// browser opens at most six connections to a host, and each stream holds one for as long as it lasts
// (HTML Standard, 9.2.7). The visible pages choose one over a BroadcastChannel; it listens and
// passes on what it hears. Web Locks would choose as well, but plain HTTP has none.
"use strict";

const QwenctlStream = (() => {
  const ANSWER = 150; // how long to wait for a page that listens already, in milliseconds
  const BEAT = 1000; // how often that page says that it is there
  const SILENT = 4000; // without a beat for so long, another page takes its place
  const seconds = () => performance.now() / 1000;

  // None in old browsers, and Firefox throws where the user has blocked all of the site's data.
  function channel() {
    try {
      return new BroadcastChannel("qwenctl.status");
    } catch {
      return null;
    }
  }

  // gpu: whose status; address: of the stream; said(status, age): news, so many seconds old;
  // failed(): this page's own stream broke; noted(note): another page calls tell(note).
  class QwenctlStream {
    constructor(gpu, address, said, failed, noted) {
      Object.assign(this, { gpu, address, said, failed, noted });
      this.id = `${Date.now().toString(36).padStart(9, "0")}${Math.random().toString(36).slice(2)}`;
      this.source = null; // this page's own stream
      this.text = ""; // the last status of a stream, as JSON
      this.textAt = 0;
      this.joined = false; // whether this page would hold the stream
      this.beatAt = -Infinity; // the last beat of another page
      this.heardAt = -Infinity; // the last of a page that follows the same GPU
      this.timer = 0;
      this.channel = channel();
      this.channel?.addEventListener("message", (event) => this.hear(event.data));
      setInterval(() => this.tick(), BEAT);
      window.addEventListener("pagehide", () => this.leave());
    }

    // Whether this page holds the stream.
    get leads() {
      return this.source !== null;
    }

    // Whether another page passes on the status of this GPU.
    get passedOn() {
      return seconds() - this.heardAt < SILENT / 1000;
    }

    // Follow the stream of another page, or open it where there is none.
    join(pause = 0) {
      clearTimeout(this.timer);
      this.joined = Boolean(window.EventSource);
      if (!this.joined || this.leads) return;
      this.beatAt = -Infinity;
      this.timer = setTimeout(() => {
        this.post({ kind: "hello" });
        const alone = () => this.beatAt === -Infinity && this.open();
        this.timer = setTimeout(alone, this.channel ? ANSWER : 0);
      }, pause);
    }

    // Leave the stream to other pages.
    leave() {
      clearTimeout(this.timer);
      this.joined = false;
      if (this.leads) {
        this.close();
        this.post({ kind: "bye" });
      }
    }

    open() {
      this.text = "";
      this.source = new EventSource(this.address);
      this.source.addEventListener("status", (event) => {
        [this.text, this.textAt] = [event.data, seconds()];
        this.beat(); // before this page opens what it waited for
        this.said(JSON.parse(event.data), 0);
      });
      this.source.onerror = () => {
        this.leave();
        this.failed();
      };
      this.beat();
    }

    close() {
      this.source.close();
      this.source = null;
    }

    tell(note) {
      this.post({ kind: "note", note });
    }

    post(message) {
      this.channel?.postMessage({ ...message, id: this.id });
    }

    beat() {
      this.post({ kind: "beat", gpu: this.gpu, text: this.text, age: seconds() - this.textAt });
    }

    tick() {
      if (this.leads) this.beat();
      else if (this.joined && this.beatAt !== -Infinity && seconds() - this.beatAt > SILENT / 1000) this.join();
    }

    hear(message) {
      if (message.kind === "hello") {
        if (this.leads) this.beat();
      } else if (message.kind === "bye") {
        this.heardAt = -Infinity;
        if (this.joined) this.join(Math.random() * ANSWER);
      } else if (message.kind === "note") {
        this.noted(message.note);
      } else if (message.kind === "beat") {
        this.follow(message);
      }
    }

    follow({ id, gpu, text, age }) {
      if (this.leads) {
        if (id > this.id) {
          this.beat(); // two opened at once: the other gives way
          return;
        }
        this.close();
      }
      this.beatAt = seconds();
      if (gpu !== this.gpu || text === "") return;
      this.heardAt = this.beatAt;
      if (text === this.text) return;
      [this.text, this.textAt] = [text, this.beatAt - age];
      this.said(JSON.parse(text), age);
    }
  }

  return QwenctlStream;
})();
