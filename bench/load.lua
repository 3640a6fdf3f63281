-- For wrk: the method, and how many tasks the body is an array of (0: no body).
function init(args)
   wrk.method = args[1]
   local tasks = tonumber(args[2])
   if tasks > 0 then
      wrk.headers["Content-Type"] = "application/json"
      wrk.body = "[" .. string.rep("{},", tasks - 1) .. "{}]"
   end
end
