import json, os, socket, sys, threading, time
# Asks at each port until the file is there; prints what came of it.
stop, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]
result = {port: {"good": 0, "bad": [], "longest": 0.0} for port in ports}
def run(port):
    while not os.path.exists(stop):
        begin = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
                s.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: s.recv(65536), b""))
            if b" 200 OK" in answer.split(b"\r\n")[0]:
                result[port]["good"] += 1
            else:
                result[port]["bad"].append(repr(answer[:60]))
        except OSError as error:
            result[port]["bad"].append(repr(error))
        result[port]["longest"] = max(result[port]["longest"], time.monotonic() - begin)
threads = [threading.Thread(target=run, args=(port,)) for port in ports for _ in range(3)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(result))
