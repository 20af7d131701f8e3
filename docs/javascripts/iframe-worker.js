/* Opened from a disk, a page may start no worker, and the search needs one. There, a hidden frame takes the worker's place.
   The name of this file tells mkdocs-material's plugin "offline" that nothing has to be fetched for that. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.deliver = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve) => this.frame.addEventListener("load", resolve));
      this.frame.srcdoc = `<script>self.postMessage = (data) => frameElement.deliver(data)</script><script src="${url}"></script>`;
      document.body.append(this.frame);
    }

    async postMessage(data) {
      await this.loaded;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
