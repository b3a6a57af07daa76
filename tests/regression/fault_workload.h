// The fixed workload of the fault matrix, and what may be seen after it.
//
// The workload saves, appends, forks, truncates, drops and restores under a host tier that is
// too small, so that chunks are demoted and promoted; every operation may fail. The oracle
// keeps, per session, the contexts that it may show: one after a success, several after an error.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "testing/kv_pattern.h"
#include "testing/opened_store.h"

namespace turnkeep::testing {

class FaultOracle {
 public:
  FaultOracle();

  // Runs the workload. Errors of the store are taken note of; wrong bytes are a problem.
  void Run(KvStore& kv);
  // Restores every session that may be there. `reopened`: also, that nothing else is visible.
  void Check(KvStore& kv, bool reopened);
  // Drops everything and checks that not a byte stays accounted for.
  void CheckAccounts(KvStore& kv);

  // What went wrong, one line each; empty if all is well.
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  struct Session {
    std::vector<KvContext> may_show;
    bool may_be_absent = true;
    bool may_be_present = false;
  };

  void Save(KvStore& kv, const std::string& name, const KvContext& context);
  void Fork(KvStore& kv, const std::string& from, const std::string& to);
  void Truncate(KvStore& kv, const std::string& name, uint64_t begin, uint64_t end);
  void Drop(KvStore& kv, const std::string& name);
  void Restore(KvStore& kv, const std::string& name);
  KvContext Current(const std::string& name) const;
  void Succeeded(const std::string& name, KvContext context);
  void Failed(const std::string& name, KvContext context);
  void Problem(const std::string& what) { problems_.push_back(what); }

  KvPattern pattern_;
  std::map<std::string, Session> sessions_;
  std::vector<std::string> problems_;
};

// The options of the matrix's stores: host tier of 1 MiB, everything written through.
StoreOptions FaultStoreOptions(const std::string& data_dir, Clock* clock);

}  // namespace turnkeep::testing
