// SPDX-License-Identifier: Apache-2.0 OR MIT

// An ioreq server on libxendevicemodel, libxenforeignmemory and libxenevtchn, as C device models are written: wait for an event,
// take it, unmask it, serve the vCPU's slot, notify. What `xen-rig/examples/bench` compares the framework with; no part of any crate
// that is published. It offers the same devices as the other side (`serve.rs`), and tells at its end what it did.

#define __XEN_TOOLS__ 1

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <xendevicemodel.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>

#include <xen/xen.h>
#include <xen/hvm/dm_op.h>
#include <xen/hvm/ioreq.h>
#include <xen/memory.h>

#define FRAMES 4096 // of the guest's memory: 16 MiB
#define PAGE_SHIFT 12
#define PAGE_BYTES (1ul << PAGE_SHIFT)
#define REGISTERS 16

static domid_t domid;
static xendevicemodel_handle *dm;
static xenforeignmemory_handle *fm;
static xenevtchn_handle *xce;

static ioservid_t id;
static shared_iopage_t *slots;
static buffered_iopage_t *ring;
static xenforeignmemory_resource_handle *resource;
static evtchn_port_t slot_port;
static evtchn_port_t ring_port;
static uint8_t *ram;

static uint32_t registers[REGISTERS];
static uint64_t served, posted, sum;

static void die(const char *what)
{
    fprintf(stderr, "c server: %s: %s\n", what, strerror(errno));
    exit(1);
}

// Guest memory; NULL outside of it, and in the VGA window.
static uint8_t *guest(uint64_t addr, uint32_t size)
{
    if (addr > (FRAMES << PAGE_SHIFT) - size)
        return NULL;
    if (addr + size > 0xa0000 && addr < 0xc0000)
        return NULL;
    return ram + addr;
}

// One element. A write to guest memory is one to a tracked page, which Xen leaves to us.
static void element(uint64_t addr, uint32_t size, int is_write, uint64_t *value)
{
    uint8_t *memory = guest(addr, size);

    if (is_write) {
        sum += *value;
        if (memory)
            memcpy(memory, value, size);
        else
            registers[addr / 4 % REGISTERS] = *value;
    } else {
        *value = 0;
        if (memory)
            memcpy(value, memory, size);
        else
            *value = registers[addr / 4 % REGISTERS];
    }
}

static void handle(ioreq_t *req)
{
    int step = req->df ? -(int)req->size : (int)req->size;
    int is_write = req->dir == IOREQ_WRITE;

    if (req->type != IOREQ_TYPE_PIO && req->type != IOREQ_TYPE_COPY)
        return;
    if (req->size > 8)
        return;
    for (uint32_t at = 0; at < req->count; at++) {
        uint64_t addr = req->addr;
        uint64_t value = req->data;
        uint8_t *data = NULL;

        if (req->type == IOREQ_TYPE_COPY)
            addr += (int64_t)step * at;
        if (req->data_is_ptr) {
            data = guest(req->data + (int64_t)step * at, req->size);
            value = 0;
            if (is_write && data)
                memcpy(&value, data, req->size);
        }
        element(addr, req->size, is_write, &value);
        if (is_write)
            continue;
        if (!req->data_is_ptr)
            req->data = value;
        else if (data)
            memcpy(data, &value, req->size);
    }
}

static void serve_slot(void)
{
    ioreq_t *req = &slots->vcpu_ioreq[0];

    if (__atomic_load_n((uint8_t *)req + 30, __ATOMIC_ACQUIRE) % 16 != STATE_IOREQ_READY)
        return;
    req->state = STATE_IOREQ_INPROCESS;
    handle(req);
    served++;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    req->state = STATE_IORESP_READY;
    if (xenevtchn_notify(xce, slot_port) < 0)
        die("notify");
}

static void serve_ring(void)
{
    for (;;) {
        uint32_t read = ring->read_pointer;
        uint32_t write = __atomic_load_n(&ring->write_pointer, __ATOMIC_ACQUIRE);
        buf_ioreq_t *entry = &ring->buf_ioreq[read % IOREQ_BUFFER_SLOT_NUM];
        uint32_t taken = 1;
        ioreq_t req = { 0 };

        if (read == write)
            return;
        req.type = entry->type;
        req.addr = entry->addr;
        req.size = 1u << entry->size;
        req.dir = entry->dir;
        req.count = 1;
        req.data = entry->data;
        if (req.size == 8) {
            req.data |= (uint64_t)ring->buf_ioreq[(read + 1) % IOREQ_BUFFER_SLOT_NUM].data << 32;
            taken = 2;
        }
        handle(&req);
        posted++;
        __atomic_fetch_add(&ring->read_pointer, taken, __ATOMIC_SEQ_CST);
    }
}

static void *acquire(unsigned long frame)
{
    void *address = NULL;

    resource = xenforeignmemory_map_resource(fm, domid, XENMEM_resource_ioreq_server, id, frame, 1, &address,
                                             PROT_READ | PROT_WRITE, 0);
    if (!resource)
        die("acquire");
    return address;
}

static void map_ram(void)
{
    static xen_pfn_t frames[FRAMES];
    static int errors[FRAMES];

    for (int frame = 0; frame < FRAMES; frame++)
        frames[frame] = frame;
    ram = xenforeignmemory_map(fm, domid, PROT_READ | PROT_WRITE, FRAMES, frames, errors);
    if (!ram)
        die("map");
}

static evtchn_port_t bind(evtchn_port_t remote)
{
    int port = xenevtchn_bind_interdomain(xce, domid, remote);

    if (port < 0)
        die("bind");
    return port;
}

static void range(int on, int is_mmio, uint64_t start, uint64_t end)
{
    int failed;

    if (on)
        failed = xendevicemodel_map_io_range_to_ioreq_server(dm, domid, id, is_mmio, start, end);
    else
        failed = xendevicemodel_unmap_io_range_from_ioreq_server(dm, domid, id, is_mmio, start, end);
    if (failed)
        die("range");
}

static void set_type(hvmmem_type_t type, uint64_t first, uint64_t pages, uint64_t batch)
{
    for (uint64_t at = 0; at < pages; at += batch)
        if (xendevicemodel_set_mem_type(dm, domid, type, first + at, batch))
            die("set_mem_type");
}

static void claim(int on)
{
    uint32_t flags = on ? XEN_DMOP_IOREQ_MEM_ACCESS_WRITE : 0;

    if (xendevicemodel_map_mem_type_to_ioreq_server(dm, domid, id, HVMMEM_ioreq_server, flags))
        die("claim");
}

// Offers ports and MMIO, or takes them away: the guest is idle then, and no request in flight.
static void offer_devices(int on, uint64_t port, uint64_t mmio)
{
    range(on, 0, port, port + 4 * REGISTERS - 1);
    range(on, 1, mmio, mmio + 4 * REGISTERS - 1);
}

// The same of what one server at a time can have.
static void offer_single(int on, uint64_t tracked)
{
    range(on, 1, 0xa0000, 0xbffff);
    if (on)
        claim(1);
    set_type(on ? HVMMEM_ioreq_server : HVMMEM_ram_rw, tracked, 1, 1);
    if (!on)
        claim(0);
}

static void set_up(void)
{
    evtchn_port_t remote;

    if (xendevicemodel_create_ioreq_server(dm, domid, HVM_IOREQSRV_BUFIOREQ_ATOMIC, &id))
        die("create");
    ring = acquire(XENMEM_resource_ioreq_server_frame_bufioreq);
    slots = acquire(XENMEM_resource_ioreq_server_frame_ioreq(0));
    if (xendevicemodel_get_ioreq_server_info(dm, domid, id, NULL, NULL, &remote))
        die("info");
    if (xendevicemodel_set_ioreq_server_state(dm, domid, id, 1))
        die("enable");
    slot_port = bind(slots->vcpu_ioreq[0].vp_eport);
    ring_port = bind(remote);
}

static void tear_down(void)
{
    if (xendevicemodel_destroy_ioreq_server(dm, domid, id))
        die("destroy");
}

// Serves until the standard input ends. A line "d" takes ports and MMIO away, or brings them back, and "s" what one server at a time
// can have.
static void serve(uint64_t port, uint64_t mmio, uint64_t tracked)
{
    struct pollfd fds[2] = { { .fd = xenevtchn_fd(xce), .events = POLLIN }, { .fd = 0, .events = POLLIN } };
    int devices = 1, single = 1;

    offer_devices(1, port, mmio);
    offer_single(1, tracked);
    puts("ready");
    fflush(stdout);
    while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
        if (fds[1].revents) {
            char line;

            if (read(0, &line, 1) != 1)
                break;
            if (line == 'd') {
                devices = !devices;
                offer_devices(devices, port, mmio);
                printf("on %d\n", devices);
            } else if (line == 's') {
                single = !single;
                offer_single(single, tracked);
                printf("on %d\n", single);
            }
            fflush(stdout);
        }
        if (fds[0].revents) {
            int fired = xenevtchn_pending(xce);

            if (fired < 0)
                continue;
            if (xenevtchn_unmask(xce, fired) < 0)
                die("unmask");
            // Posted requests come first: they are older.
            serve_ring();
            if ((evtchn_port_t)fired == slot_port)
                serve_slot();
        }
    }
    if (devices)
        offer_devices(0, port, mmio);
    if (single)
        offer_single(0, tracked);
    tear_down();
    printf("served %" PRIu64 " posted %" PRIu64 " sum %" PRIu64 "\n", served, posted, sum);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

// Marks pages that nobody writes to, and unmarks them, in batches; one step for each line of the standard input.
static void mark(uint64_t first, uint64_t pages, uint64_t batch)
{
    int marked = 0;

    claim(1);
    puts("ready");
    fflush(stdout);
    while (getchar() == '\n') {
        double start = now();

        set_type(marked ? HVMMEM_ram_rw : HVMMEM_ioreq_server, first, pages, batch);
        marked = !marked;
        printf("seconds %f\n", now() - start);
        fflush(stdout);
    }
    if (marked)
        set_type(HVMMEM_ram_rw, first, pages, batch);
    claim(0);
    tear_down();
    puts("marked 0");
}

int main(int argc, char **argv)
{
    uint64_t numbers[4] = { 0 };

    if (argc < 6)
        return 2;
    for (int at = 0; at < 4; at++)
        numbers[at] = strtoull(argv[at + 2], NULL, 0);
    domid = numbers[0];
    dm = xendevicemodel_open(NULL, 0);
    fm = xenforeignmemory_open(NULL, 0);
    xce = xenevtchn_open(NULL, 0);
    if (!dm || !fm || !xce)
        die("open");
    set_up();
    if (!strcmp(argv[1], "serve")) {
        map_ram();
        serve(numbers[1], numbers[2], numbers[3]);
    } else {
        mark(numbers[1], numbers[2], numbers[3]);
    }
    return 0;
}
