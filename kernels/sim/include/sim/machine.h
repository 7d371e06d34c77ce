// What runs a kernel: cores with pipes, their clocks, their local memory, the global memory they share.
//
// Every call of the AscendC API becomes an Instruction: it says what it reads and writes, and the machine checks that
// against everything that happened before. Two orders of execution: as the program says (the vector clocks find what
// is not ordered), and deferred (instructions wait in queues per pipe and are drained in a random order that only
// flags and barriers limit, so that a missing one shows in the numbers).
#ifndef SIM_MACHINE_H
#define SIM_MACHINE_H

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cycles.h"
#include "sim/shapes.h"

namespace sim {

enum class Pipe : uint8_t { S,
                            V,
                            MTE2,
                            MTE3,
                            MTE1,
                            M,
                            FIX };
constexpr int kPipes = 7;
const char* PipeName(Pipe pipe);

constexpr uint32_t kBlock = 32;                           // bytes of the unit of local memory
constexpr uint32_t kRepeat = 256;                         // bytes a vector instruction takes at a time
constexpr uint32_t kCacheLine = 64;                       // bytes of a line of the scalar unit's data cache
constexpr int kEventIds = 8;                              // flags of each pair of pipes
constexpr int kReservedEventIds = 2;                      // 6 and 7 are the framework's
constexpr int kMaxBuffers = 64;                           // of a TPipe
constexpr int kCrossCoreIds = 11;                         // of flags between cores; 11 to 15 are SyncAll's and the framework's
constexpr int kCrossCoreLimit = 15;                       // what the counter of such a flag holds
constexpr uint64_t kLibraryWorkspace = 16 * 1024 * 1024;  // of a workspace, in front

// Where in the kernel's source an API is called: as a default argument, ``Where("Add")`` is the place of the call.
struct Where {
    Where(const char* api, const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line), api(api) {}
    const char* file;
    int line;
    const char* api;
};
inline Where Nowhere(const char* api = "") { return {api, "", 0}; }

// A kernel that breaks a rule. kind: of the check, in brackets in the text.
struct Violation {
    std::string text;
};
[[noreturn]] void Fail(const char* kind, const Where& where, const char* format, ...) __attribute__((format(printf, 3, 4)));

// -- order -----------------------------------------------------------------------------------------------------

using View = std::vector<uint32_t>;  // by core * kPipes + pipe: instructions known to be complete

// What is known to be complete: of this core by pipe, of the others as of the last time they synchronised.
struct Knowledge {
    uint32_t own[kPipes] = {};
    std::shared_ptr<const View> others;
};
void Join(Knowledge& into, const Knowledge& from);

struct Flag {
    bool is_set = false;
    Knowledge known;
    double time = 0;
    const char* file = "";
    int line = 0;
};

// -- local memory ----------------------------------------------------------------------------------------------

enum class BufferState : uint8_t { Raw,
                                   Idle,
                                   Allocated,
                                   Queued,
                                   Delivered };

// A piece of local memory that InitBuffer handed out. generation: of its content; older tensors are stale.
struct Buffer {
    uint32_t address;
    uint32_t bytes;
    AscendC::TPosition position;
    BufferState state = BufferState::Raw;
    uint32_t generation = 0;
    AscendC::HardEvent free_event = AscendC::HardEvent::MAX;  // set by FreeTensor, for whoever allocates it next
    int free_event_id = -1;
};

// Of 32 bytes of local memory: which are initialised, who wrote and read them last.
struct BlockShadow {
    uint32_t initialised = 0;
    uint32_t written = 0;
    uint32_t read[kPipes] = {};
    Pipe writer = Pipe::S;
};

// What a LocalTensor stands for.
struct Local {
    uint32_t address = 0;
    uint32_t bytes = 0;
    int16_t buffer = -1;
    uint32_t generation = 0;
};

// -- global memory ---------------------------------------------------------------------------------------------

struct Access {
    uint16_t core;
    Pipe pipe;
    uint32_t clock;
    bool is_poll = false;  // a read of so few bytes of a window that it may be of a flag
};

// A piece of an allocation with one history.
struct Segment {
    uint64_t end;
    bool is_initialised;
    uint64_t stamp = 0;  // of the last write in this launch
    int line = 0;
    std::shared_ptr<const Knowledge> released;  // what the writer of a flag knew
    std::vector<Access> writers;                // who wrote it last, in this launch; of several pieces put together, of each
    std::vector<Access> adders;                 // who added to that since: any number of cores at once
    std::vector<Access> readers;
};

enum AllocationUse : uint32_t { kRead = 1,
                                kWrite = 2 };

constexpr uint64_t kFlagBytes = 64;  // a read of a window of at most this many bytes may be of a flag another rank sets

struct Allocation {
    std::string name;
    uint8_t* base;
    uint64_t bytes;
    uint32_t use;
    bool is_window = false;
    int rank = -1;                         // whose window it is
    std::map<uint64_t, Segment> segments;  // by begin; none where nobody may write

    bool IsOfAnother(int other) const { return is_window && rank != other; }

    // The segments of [begin, end), cut at both.
    std::map<uint64_t, Segment>::iterator Cut(uint64_t begin, uint64_t end);
};

// Bytes that another rank may read as soon as it sees the word at ``flag``: from then on nobody may write them.
struct Publication {
    uint8_t* flag;
    uint8_t* base;
    uint64_t bytes;
    bool is_public = false;
};

// -- cores -----------------------------------------------------------------------------------------------------

struct Traced {
    uint32_t name;
    Pipe pipe;
    double begin, end;
    uint32_t bytes;
};

struct Deferred {
    enum Kind : uint8_t { Run,
                          Set,
                          Wait } kind;
    int flag;  // event * kEventIds + id
    std::function<void()> body;
};

struct CacheLine {
    uint8_t bytes[kCacheLine];
    uint64_t dirty = 0;  // bit per byte
    uint64_t stamp = 0;
};

enum class CoreState : uint8_t { Ready,
                                 Blocked,
                                 Done };

struct Rank;

class Core {
public:
    Core(int number, int rank, int block, bool is_cube, uint32_t local_bytes);

    // Checks and marks. bytes from tensor's begin + offset.
    void ReadLocal(const Where& where, Pipe pipe, const Local& tensor, uint64_t offset, uint64_t bytes);
    void WriteLocal(const Where& where, Pipe pipe, const Local& tensor, uint64_t offset, uint64_t bytes);
    void ReadGlobal(const Where& where, Pipe pipe, const uint8_t* address, uint64_t bytes);
    void WriteGlobal(const Where& where, Pipe pipe, uint8_t* address, uint64_t bytes, bool is_addition = false);
    void Forget(const Local& tensor, uint64_t offset, uint64_t bytes);  // written, with no value anybody may rely on
    void Aligned(const Where& where, const Local& tensor, const char* what) const;
    void AlignedScalar(const Where& where, const Local& tensor, uint32_t bytes) const;

    uint8_t* Bytes(const Local& tensor) { return memory.data() + tensor.address; }

    // An instruction on ``pipe``: the next clock of it; then what it touches; then its work.
    void Begin(Pipe pipe);
    void Issue(const Where& where, Pipe pipe, double cycles, double latency, uint64_t bytes, std::function<void()> body);

    void SetFlag(const Where& where, AscendC::HardEvent event, int id);
    void WaitFlag(const Where& where, AscendC::HardEvent event, int id);
    int AllocEvent(const Where& where, AscendC::HardEvent event);
    void ReleaseEvent(const Where& where, AscendC::HardEvent event, int id);
    int FetchEvent(const Where& where, AscendC::HardEvent event);
    void AwaitFree(const Where& where, Buffer& buffer);
    void Barrier(const Where& where, int pipe);  // -1: all
    void DrainAll(const Where& where);

    // The scalar unit's view of global memory.
    void LoadScalar(const Where& where, const uint8_t* address, uint32_t bytes, void* into);
    void StoreScalar(const Where& where, uint8_t* address, uint32_t bytes, const void* from);
    void CleanAndInvalidate(const Where& where, const uint8_t* address, bool is_whole_cache);

    // Every call of the API comes by here; a launch that does not end, or that Ctrl-C ends, stops here.
    inline void At(const Where& here);
    void CheckEnd();
    std::string Describe() const;

    const int number, rank, block;
    const bool is_cube;
    CoreState state = CoreState::Ready;
    std::function<bool()> is_ready;
    std::string waits_for;
    Where where = Nowhere();
    uint64_t calls = 0;

    // local memory
    std::vector<uint8_t> memory;
    std::vector<BlockShadow> shadow;
    std::vector<Buffer> buffers;
    uint32_t local_used = 0, local_most = 0;
    int live_buffers = 0;
    void* pipe_object = nullptr;

    // order
    uint32_t clock[kPipes] = {};
    Knowledge known[kPipes];
    Flag flags[static_cast<int>(AscendC::HardEvent::MAX)][kEventIds];
    uint8_t allocated_events[static_cast<int>(AscendC::HardEvent::MAX)] = {};

    // deferred execution
    std::deque<Deferred> queues[kPipes];
    std::unordered_map<int, int> pending_sets;

    // the scalar unit's cache, by address of the line; what was invalidated since the launch
    std::unordered_map<uint64_t, CacheLine> cache;
    std::unordered_set<uint64_t> invalidated;
    bool is_cache_clean = false;
    int dirty_lines = 0;

    // vector state
    uint64_t cross_core_waits[kCrossCoreIds] = {};
    const void* atomic = nullptr;  // what memory adds: the address of AtomicOf<T>
    float deq_scale = 1;
    bool has_deq_scale = false;

    // figures
    double time[kPipes] = {};  // when the pipe takes its next instruction
    double done[kPipes] = {};  // when all it has taken is there
    double busy[kPipes] = {};
    uint64_t bytes_in = 0, bytes_out = 0, bytes_far = 0, instructions = 0;  // far: to windows of other ranks
    std::vector<Traced> trace;
    uint64_t idle_polls = 0;
    std::unordered_set<const void*> polled;  // since somebody wrote anything

    // fiber
    void* fiber = nullptr;

private:
    [[noreturn]] void NotOrdered(const Where& where, const char* kind, Pipe pipe, const char* verb, uint64_t at, Pipe other,
                                 const char* did) const;
    [[noreturn]] void NotOrdered(const Where& where, const char* kind, Pipe pipe, const char* verb, const Allocation& target,
                                 uint64_t at, const Access& other, const char* did, int line) const;
    void Reach(const Where& where, const Local& tensor, uint64_t offset, uint64_t bytes, const char* verb) const;
    bool IsKnown(Pipe pipe, const Access& access) const;
    bool KnowsAll(Pipe pipe, const std::vector<Access>& accesses) const;
    void CheckKnown(const Where& where, Pipe pipe, const char* kind, const char* verb, const Allocation& target, uint64_t at,
                    const std::vector<Access>& accesses, const char* did, int line) const;
    friend class Machine;
    bool StepOnce(std::mt19937_64& random);
    [[noreturn]] void GiveUp() const;
    CacheLine& Line(const Where& where, const uint8_t* address, uint32_t bytes);
    void WriteBack(const Where& where, uint64_t line);
};

struct Rank {
    const char* stem;
    std::string entry;
    uint64_t tiling_key;
    uint32_t block_dim;
    int task_type;
    const uint8_t* tiling;
    uint64_t tiling_bytes;
    bool is_key_matched = false, has_asked_key = false;
    bool has_checked_type = false;
    std::vector<void*> arguments;
    uint8_t* context = nullptr;  // HCCL's description of the group
    std::vector<Core*> cores;
    // SyncAll
    int arrived = 0;
    uint64_t rounds = 0;
    // flags between cores, by id: how often each core has set it; what was known in each round that all have
    struct CrossCore {
        std::vector<uint64_t> sets;
        std::vector<std::shared_ptr<View>> rounds;
        std::vector<double> times;
        uint64_t complete = 0;
    } cross_core[kCrossCoreIds];
};

struct HostStore {
    uint64_t polls;
    uint8_t* address;
    std::vector<uint8_t> bytes;
};

class Machine {
public:
    Allocation& Find(const Where& where, const uint8_t* address, uint64_t bytes, const char* verb);
    uint64_t LatestStamp(const Allocation& target, uint64_t begin, uint64_t end) const;
    void Publish(const Where& where, Pipe pipe, uint8_t* address, uint64_t bytes);
    void SyncAll(const Where& where, bool is_vector_only);
    void SetCrossCore(const Where& where, Pipe pipe, int id);
    void WaitCrossCore(const Where& where, int id);
    void Poll(const Where& where, const void* address);
    void Yield();
    void Block(const Where& where, std::string what, std::function<bool()> is_ready);
    void Run();

    std::vector<std::unique_ptr<Core>> cores;
    std::vector<Rank> ranks;
    std::map<uintptr_t, Allocation> memory;             // by base
    std::multimap<uint8_t*, Publication> publications;  // by flag
    std::vector<const Publication*> published;
    std::vector<HostStore> host_stores;
    std::vector<uint8_t*> windows;  // of each rank
    std::vector<uint64_t> window_bytes;
    std::mt19937_64 random;
    bool is_deferred = false;
    bool has_clocks = true;
    bool is_traced = false;
    uint64_t stamp = 0;  // of writes to global memory
    uint64_t polls = 0;
    uint64_t most_calls = 0;  // of a core; more, and it never ends
    volatile sig_atomic_t is_interrupted = 0;
    uint32_t usable_local = 0;
    Rates rates;
    uint64_t seen_stamp = 0;  // of the last poll
    Core* core = nullptr;     // the one that runs
    std::string failure;
};

Machine& machine();
inline Core& core() { return *machine().core; }

inline void Core::At(const Where& here) {
    where = here;
    if (++calls > machine().most_calls || machine().is_interrupted) {
        GiveUp();
    }
}

uint32_t NameOf(const char* api);
const std::string& NameAt(uint32_t number);

}  // namespace sim

#endif
