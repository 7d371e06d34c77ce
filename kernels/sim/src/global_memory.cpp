// Global memory: bounds, what is in it, who used it last, and the scalar unit's cache, which sees nobody else's writes.
#include <algorithm>
#include <cstring>

#include "sim/machine.h"

namespace sim {

std::map<uint64_t, Segment>::iterator Allocation::Cut(uint64_t begin, uint64_t end) {
    auto at = std::prev(segments.upper_bound(begin));
    if (at->first < begin) {
        Segment tail = at->second;
        at->second.end = begin;
        at = segments.emplace_hint(std::next(at), begin, std::move(tail));
    }
    auto last = std::prev(segments.lower_bound(end));
    if (last->second.end > end) {
        Segment tail = last->second;
        last->second.end = end;
        segments.emplace_hint(std::next(last), end, std::move(tail));
    }
    return segments.find(begin);
}

Allocation& Machine::Find(const Where& here, const uint8_t* address, uint64_t bytes, const char* verb) {
    auto at = memory.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (address && at != memory.begin()) {
        Allocation& found = std::prev(at)->second;
        const uint64_t offset = static_cast<uint64_t>(address - found.base);
        if (offset <= found.bytes && bytes <= found.bytes - offset) {
            return found;
        }
        if (offset < found.bytes + 65536) {
            Fail("Global", here, "%s bytes %llu to %llu of %s, which has %llu", verb, static_cast<unsigned long long>(offset),
                 static_cast<unsigned long long>(offset + bytes), found.name.c_str(), static_cast<unsigned long long>(found.bytes));
        }
    }
    Fail("Global", here, address ? "%s global memory that this launch was not given" : "%s an optional tensor that is absent", verb);
}

uint64_t Machine::LatestStamp(const Allocation& target, uint64_t begin, uint64_t end) const {
    uint64_t latest = 0;
    if (target.segments.empty()) {
        return 0;
    }
    for (auto at = std::prev(target.segments.upper_bound(begin)); at != target.segments.end() && at->first < end; ++at) {
        latest = std::max(latest, at->second.stamp);
    }
    return latest;
}

void Core::NotOrdered(const Where& here, const char* kind, Pipe pipe, const char* verb, const Allocation& target, uint64_t at, const Access& other,
                      const char* did, int line) const {
    std::string who = "this core's ", cure;
    if (other.core != number) {
        const Core& them = *machine().cores[other.core];
        who = "core " + std::to_string(them.block) + (them.rank == rank ? "'s " : " of rank " + std::to_string(them.rank) + "'s ");
        cure = "Nothing orders them: SyncAll, or a flag that is set behind the data, is missing";
    } else if (other.pipe == pipe) {
        cure = std::string("PipeBarrier<PIPE_") + PipeName(pipe) + "> is missing";
    } else {
        cure = std::string("A flag of ") + PipeName(other.pipe) + "_" + PipeName(pipe) + " is missing";
    }
    const std::string where_to = line ? " (line " + std::to_string(line) + ")" : "";
    Fail(kind, here, "%s %s byte %llu of %s, which %s%s %s%s. %s", PipeName(pipe), verb, static_cast<unsigned long long>(at), target.name.c_str(),
         who.c_str(), PipeName(other.pipe), did, where_to.c_str(), cure.c_str());
}

bool Core::KnowsAll(Pipe pipe, const std::vector<Access>& accesses) const {
    return std::all_of(accesses.begin(), accesses.end(), [&](const Access& access) { return IsKnown(pipe, access); });
}

void Core::CheckKnown(const Where& here, Pipe pipe, const char* kind, const char* verb, const Allocation& target, uint64_t at,
                      const std::vector<Access>& accesses, const char* did, int line) const {
    for (const Access& access : accesses) {
        if (!IsKnown(pipe, access)) {
            NotOrdered(here, kind, pipe, verb, target, at, access, did, line);
        }
    }
}

void Core::ReadGlobal(const Where& here, Pipe pipe, const uint8_t* address, uint64_t bytes) {
    if (bytes == 0) {
        return;
    }
    At(here);
    Allocation& target = machine().Find(here, address, bytes, "reads");
    if (!(target.use & kRead) && target.segments.empty()) {
        Fail("Global", here, "reads %s, which may only be written", target.name.c_str());
    }
    if (target.segments.empty()) {
        return;  // nobody writes it
    }
    const uint64_t begin = static_cast<uint64_t>(address - target.base), end = begin + bytes;
    if (dirty_lines > 0 && pipe != Pipe::S) {
        for (uint64_t line = reinterpret_cast<uint64_t>(address) / kCacheLine; line * kCacheLine < reinterpret_cast<uint64_t>(address) + bytes; ++line) {
            auto cached = cache.find(line * kCacheLine);
            if (cached != cache.end() && cached->second.dirty) {
                Fail("Cache", here, "reads bytes of %s that SetValue wrote and that are still in the data cache", target.name.c_str());
            }
        }
    }
    const bool may_be_flag = target.is_window && bytes <= kFlagBytes;
    for (auto at = target.Cut(begin, end); at != target.segments.end() && at->first < end; ++at) {
        Segment& segment = at->second;
        if (!segment.is_initialised) {
            Fail("Read2", here, "reads byte %llu of %s, which nobody has written", static_cast<unsigned long long>(at->first), target.name.c_str());
        }
        if (!KnowsAll(pipe, segment.writers) && may_be_flag && segment.released && machine().cores[segment.writers[0].core]->rank != rank) {
            // a flag of another rank: who sees it knows what its writer knew
            const uint16_t writer = segment.writers[0].core;
            auto view = segment.released->others ? std::make_shared<View>(*segment.released->others) : std::make_shared<View>(machine().cores.size() * kPipes, 0);
            for (int p = 0; p < kPipes; ++p) {
                (*view)[writer * kPipes + p] = segment.released->own[p];
            }
            Join(known[static_cast<int>(pipe)], Knowledge{{}, view});
        } else {
            CheckKnown(here, pipe, "Sync1", "reads", target, at->first, segment.writers, "writes", segment.line);
        }
        CheckKnown(here, pipe, "Sync1", "reads", target, at->first, segment.adders, "adds", segment.line);
        const Access mine{static_cast<uint16_t>(number), pipe, clock[static_cast<int>(pipe)], may_be_flag};
        auto same = std::find_if(segment.readers.begin(), segment.readers.end(),
                                 [&](const Access& reader) { return reader.core == mine.core && reader.pipe == mine.pipe; });
        if (same != segment.readers.end()) {
            *same = mine;
        } else {
            segment.readers.push_back(mine);
        }
    }
}

void Core::WriteGlobal(const Where& here, Pipe pipe, uint8_t* address, uint64_t bytes, bool is_addition) {
    if (bytes == 0) {
        return;
    }
    At(here);
    Allocation& target = machine().Find(here, address, bytes, "writes");
    if (!(target.use & kWrite)) {
        Fail("Global", here, "writes %s, which is an input", target.name.c_str());
    }
    const uint64_t begin = static_cast<uint64_t>(address - target.base), end = begin + bytes;
    for (const Publication* open : machine().published) {
        if (open->base < address + bytes && address < open->base + open->bytes) {
            Fail("Publish", here, "writes byte %llu of %s after the flag in front of it has been set: another rank may be reading it",
                 static_cast<unsigned long long>(begin), target.name.c_str());
        }
    }
    const Access mine{static_cast<uint16_t>(number), pipe, clock[static_cast<int>(pipe)]};
    const bool may_be_flag = target.is_window && bytes <= kFlagBytes;
    std::vector<Access> writers, adders;
    auto first = target.Cut(begin, end);
    for (auto at = first; at != target.segments.end() && at->first < end; ++at) {
        const Segment& segment = at->second;
        CheckKnown(here, pipe, "Sync2", is_addition ? "adds to" : "writes", target, at->first, segment.writers, "writes", segment.line);
        for (const Access& reader : segment.readers) {
            // who polls a flag of another rank reads it at any time
            const bool is_flag = may_be_flag && reader.is_poll && machine().cores[reader.core]->rank != rank;
            if (!is_flag && !IsKnown(pipe, reader)) {
                NotOrdered(here, "Sync2", pipe, is_addition ? "adds to" : "writes", target, at->first, reader, "reads", 0);
            }
        }
        if (is_addition) {
            if (!segment.is_initialised) {
                Fail("Read2", here, "adds to byte %llu of %s, which nobody has written", static_cast<unsigned long long>(at->first), target.name.c_str());
            }
            writers.insert(writers.end(), segment.writers.begin(), segment.writers.end());
            adders.insert(adders.end(), segment.adders.begin(), segment.adders.end());
        } else {
            CheckKnown(here, pipe, "Sync2", "writes", target, at->first, segment.adders, "adds", segment.line);
        }
    }
    (is_addition ? adders : writers).push_back(mine);
    target.segments.erase(std::next(first), target.segments.lower_bound(end));
    Segment& segment = first->second;
    segment = Segment{end, true, ++machine().stamp, here.line, nullptr, std::move(writers), std::move(adders), {}};
    if (may_be_flag && !is_addition) {
        segment.released = std::make_shared<Knowledge>(known[static_cast<int>(pipe)]);
    }
    machine().Publish(here, pipe, address, bytes);
}

void Machine::Publish(const Where& here, Pipe pipe, uint8_t* address, uint64_t bytes) {
    for (auto at = publications.lower_bound(address); at != publications.end() && at->first < address + bytes; ++at) {
        Publication& open = at->second;
        if (open.is_public) {
            Fail("Publish", here, "sets a flag that is set already");
        }
        open.is_public = true;
        published.push_back(&open);
        Allocation& target = Find(here, open.base, open.bytes, "publishes");
        const uint64_t begin = static_cast<uint64_t>(open.base - target.base), end = begin + open.bytes;
        for (auto piece = std::prev(target.segments.upper_bound(begin)); piece != target.segments.end() && piece->first < end; ++piece) {
            const uint64_t from = std::max(begin, piece->first);
            core->CheckKnown(here, pipe, "Publish", "sets a flag in front of", target, from, piece->second.writers, "writes", piece->second.line);
            core->CheckKnown(here, pipe, "Publish", "sets a flag in front of", target, from, piece->second.adders, "adds", piece->second.line);
        }
    }
}

// -- the scalar unit's cache -------------------------------------------------------------------------------------

CacheLine& Core::Line(const Where& here, const uint8_t* address, uint32_t bytes) {
    const uint64_t line = reinterpret_cast<uint64_t>(address) / kCacheLine * kCacheLine;
    Allocation& target = machine().Find(here, address, bytes, "reads");
    const uint64_t begin = static_cast<uint64_t>(address - target.base);
    auto [at, is_new] = cache.try_emplace(line);
    CacheLine& found = at->second;
    double& now = time[static_cast<int>(Pipe::S)];
    now += is_new ? machine().rates.scalar_miss : machine().rates.scalar;
    if (is_new) {
        if (!is_cache_clean && !invalidated.count(line)) {
            cache.erase(at);
            Fail("Cache", here, "reads %s through a line of the data cache that may be of an earlier kernel. DataCacheCleanAndInvalid is missing",
                 target.name.c_str());
        }
        found.stamp = machine().stamp;
        uint8_t* from = reinterpret_cast<uint8_t*>(line);
        uint8_t* first = std::max(from, target.base);
        uint8_t* last = std::min(from + kCacheLine, target.base + target.bytes);
        std::memcpy(found.bytes + (first - from), first, static_cast<size_t>(last - first));
    } else if (machine().LatestStamp(target, begin, begin + bytes) > found.stamp) {
        Fail("Cache", here, "reads byte %llu of %s from the data cache, but it has been written since. DataCacheCleanAndInvalid is missing",
             static_cast<unsigned long long>(begin), target.name.c_str());
    }
    return found;
}

void CheckScalar(const Where& here, uint64_t address, uint32_t bytes) {
    if (address % bytes) {
        Fail("Align", here, "a scalar of %u bytes at an address that is no multiple of %u", bytes, bytes);
    }
}

void Core::LoadScalar(const Where& here, const uint8_t* address, uint32_t bytes, void* into) {
    At(here);
    CheckScalar(here, reinterpret_cast<uint64_t>(address), bytes);
    Begin(Pipe::S);
    ReadGlobal(here, Pipe::S, address, bytes);
    CacheLine& line = Line(here, address, bytes);
    std::memcpy(into, line.bytes + reinterpret_cast<uint64_t>(address) % kCacheLine, bytes);
}

void Core::StoreScalar(const Where& here, uint8_t* address, uint32_t bytes, const void* from) {
    At(here);
    CheckScalar(here, reinterpret_cast<uint64_t>(address), bytes);
    Begin(Pipe::S);
    Allocation& target = machine().Find(here, address, bytes, "writes");
    if (!(target.use & kWrite)) {
        Fail("Global", here, "writes %s, which is an input", target.name.c_str());
    }
    CacheLine& line = Line(here, address, bytes);
    const uint64_t at = reinterpret_cast<uint64_t>(address) % kCacheLine;
    std::memcpy(line.bytes + at, from, bytes);
    dirty_lines += line.dirty == 0;
    line.dirty |= ((bytes == 64 ? 0 : uint64_t{1} << bytes) - 1) << at;
}

void Core::WriteBack(const Where& here, uint64_t at) {
    CacheLine& line = cache.at(at);
    uint8_t* base = reinterpret_cast<uint8_t*>(at);
    Allocation& target = machine().Find(here, base + __builtin_ctzll(line.dirty), 1, "writes");
    uint8_t* first = std::max(base, target.base);
    uint8_t* last = std::min(base + kCacheLine, target.base + target.bytes);
    if (machine().LatestStamp(target, static_cast<uint64_t>(first - target.base), static_cast<uint64_t>(last - target.base)) > line.stamp) {
        Fail("Cache", here, "writes back a whole line of %s of which others have written a part since: their bytes are lost", target.name.c_str());
    }
    // the whole line is written: a neighbour that another core writes meanwhile is lost
    const uint64_t begin = static_cast<uint64_t>(first - target.base), end = static_cast<uint64_t>(last - target.base);
    std::vector<std::pair<uint64_t, uint64_t>> unknown;
    for (auto piece = target.Cut(begin, end); piece != target.segments.end() && piece->first < end; ++piece) {
        if (!piece->second.is_initialised) {
            unknown.emplace_back(piece->first, piece->second.end);
        }
    }
    WriteGlobal(here, Pipe::S, first, end - begin);
    for (const auto& [from, to] : unknown) {
        for (uint64_t at = from; at < to; ++at) {
            const uint64_t bit = static_cast<uint64_t>(target.base + at - base);
            if (!(line.dirty >> bit & 1)) {
                target.Cut(at, at + 1)->second.is_initialised = false;
            }
        }
    }
    for (uint32_t i = 0; i < kCacheLine; ++i) {
        if (line.dirty >> i & 1) {
            base[i] = line.bytes[i];
        }
    }
    line.dirty = 0;
    --dirty_lines;
}

void Core::CleanAndInvalidate(const Where& here, const uint8_t* address, bool is_whole_cache) {
    At(here);
    Begin(Pipe::S);
    time[static_cast<int>(Pipe::S)] += machine().rates.scalar;
    if (is_whole_cache) {
        for (auto& [line, content] : cache) {
            if (content.dirty) {
                WriteBack(here, line);
            }
        }
        cache.clear();
        is_cache_clean = true;
    } else {
        const uint64_t line = reinterpret_cast<uint64_t>(address) / kCacheLine * kCacheLine;
        auto found = cache.find(line);
        if (found != cache.end()) {
            if (found->second.dirty) {
                WriteBack(here, line);
            }
            cache.erase(found);
        }
        invalidated.insert(line);
    }
    auto at = machine().memory.upper_bound(reinterpret_cast<uintptr_t>(address));
    const bool may_change = at != machine().memory.begin() && !std::prev(at)->second.segments.empty();
    if (may_change) {
        machine().Poll(here, address);
    }
}

}  // namespace sim
