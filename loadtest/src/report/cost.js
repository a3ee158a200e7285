(() => {
  const form = document.getElementById("cost"), measured = JSON.parse(document.getElementById("measured").textContent);
  const cell = (text) => Object.assign(document.createElement("td"), { textContent: text });
  const show = () => {
    const is = Object.fromEntries([...form.elements].map((input) => [input.name, Math.max(0, Number(input.value) || 0)]));
    const rows = measured.map((one) => {
      const pods = one.is_shared ? Math.max(is.pods, one.pods) : is.pods;
      const shims = one.has_shim ? is.pods : 0;
      const memory = one.is_shared ? is.gateway_memory_mib + is.shim_memory_mib * shims : is.sidecar_memory_mib * is.pods;
      const cpu = one.is_shared ? is.gateway_cpu_milli + is.shim_cpu_milli * shims : is.sidecar_cpu_milli * is.pods;
      const row = document.createElement("tr");
      row.append(
        Object.assign(document.createElement("th"), { scope: "row", textContent: one.arm }),
        cell((one.memory_kib_per_pod * pods * is.nodes / 1048576).toFixed(1)),
        cell((one.cpu_s_per_million * is.nodes * is.pods * is.items_per_second / 1e6).toFixed(2)),
        cell((memory * is.nodes / 1024).toFixed(1)),
        cell((cpu * is.nodes / 1000).toFixed(1)));
      return row;
    });
    document.getElementById("costs").replaceChildren(...rows);
    document.getElementById("beyond").hidden = !measured.some((one) => is.pods > one.pods);
  };
  form.addEventListener("input", show);
  show();
})();
